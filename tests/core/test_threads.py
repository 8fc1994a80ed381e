"""Work on the threads that the process keeps: every call is made, errors arrive, and a fork has threads of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from isobit.threads import run_on_threads


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 33])
def test_every_call_is_made_once(count: int, threads: int) -> None:
    calls_of = np.zeros(count, int)

    def note(index: int, amount: int) -> None:
        calls_of[index] += amount

    run_on_threads(note, [(index, index + 1) for index in range(count)], threads)
    np.testing.assert_array_equal(calls_of, np.arange(1, count + 1))


def test_calls_run_at_the_same_time() -> None:
    barrier = threading.Barrier(3)
    run_on_threads(barrier.wait, [(10.0,)] * 3, 2)  # would time out if one waited for another to end


@pytest.mark.parametrize("failing", [0, 1, 3])
def test_an_error_arrives_when_all_calls_have_ended(failing: int) -> None:
    ended = []

    def work(index: int) -> None:
        if index == failing:
            raise ValueError(f"call {index}")
        time.sleep(0.05)
        ended.append(index)

    with pytest.raises(ValueError, match=f"call {failing}"):
        run_on_threads(work, [(index,) for index in range(4)], 2)
    assert sorted(ended) == [index for index in range(4) if index != failing]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_has_threads_of_its_own() -> None:
    run_on_threads(time.sleep, [(0.0,)] * 4, 3)  # the parent's threads exist
    child = os.fork()
    if child == 0:
        run_on_threads(time.sleep, [(0.0,)] * 4, 3)  # would wait for ever on threads that a fork does not copy
        os._exit(7)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert os.waitstatus_to_exitcode(status) == 7
            return
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("the child process waits for threads of its parent")


def test_asking_numba_does_not_start_its_threads() -> None:
    """With OpenMP they would set the number of threads of all of the process, PyTorch's too."""
    code = (
        "from isobit.threads import numba_threads\n"
        "from numba.np.ufunc import parallel\n"
        "import numba\n"
        "assert numba_threads() == numba.config.NUMBA_NUM_THREADS\n"
        "assert not parallel._is_initialized\n"
        "numba.set_num_threads(1)\n"
        "assert numba_threads() == 1\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
