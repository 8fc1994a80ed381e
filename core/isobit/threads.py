"""Work shared among threads that the process keeps: for compiled code, which runs without the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import Any


def available_threads() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_on_threads(function: Callable[..., object], calls: Sequence[tuple[Any, ...]], threads: int) -> None:
    """Call `function` with each of `calls`, the first one on this thread and the others on up to `threads` more.

    All calls have ended when this returns or raises the first error of one. Their results are dropped.
    """
    if len(calls) < 2 or threads < 2:
        for arguments in calls:
            function(*arguments)
        return
    pool = _pool(os.getpid(), threads)
    tasks = [pool.submit(function, *arguments) for arguments in calls[1:]]
    try:
        function(*calls[0])
    finally:
        wait(tasks)
    for task in tasks:
        task.result()


def numba_threads() -> int:
    """How many threads numba would use, so that users say it in one place.

    ``numba.get_num_threads()`` starts numba's threads, which are not needed here and, with OpenMP, set the number of
    threads for all of the process, PyTorch's too. It is asked only where they run already.
    """
    from numba import config, get_num_threads
    from numba.np.ufunc import parallel

    started = getattr(parallel, "_is_initialized", False)
    return int(get_num_threads() if started else vars(config)["NUMBA_NUM_THREADS"])


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """The threads of one process: a fork has none of its parent's."""
    return ThreadPoolExecutor(threads, "isobit")
