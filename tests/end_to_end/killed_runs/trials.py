"""Trials: a verb runs in a fork of this process, which is killed at a random moment, and its files are looked at."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from killed_runs.verbs import BATCHES, Verbs

from isobit.quantsim.observe import JOURNAL

#: No threads run after these are imported, so that forks are whole.
_IMPORTED = (
    "isobit_onnx.model",
    "isobit_onnx.export.check_loads",
    "isobit_onnx.reference_networks",
    "safetensors.numpy",
)


@dataclass
class Outcome:
    """What came of the trials of a verb."""

    verb: str
    killed: int = 0
    finished: int = 0  # before the kill
    left: int = 0  # kills that left hidden files or folders until the next run
    most_lost: int = 0  # batches that were computed and are not in the file `resume`
    problems: list[str] = field(default_factory=list)


def run_trials(verb: str, count: int, folder: Path, seed: int = 0) -> Outcome:
    """Kill `verb` at `count` random moments, as far as it is not over before.

    Every file must be whole, old or new, and the next run must sweep.
    """
    for module in _IMPORTED:  # once, here: every fork would do it again
        importlib.import_module(module)
    random, outcome = Random(f"{verb} {seed}"), Outcome(verb)
    verbs = Verbs(folder)
    _in_fork(verbs.prepare)
    states, seconds = [], 0.0
    for turn in (1, 0):
        seconds = _killed(verbs, verb, turn, None)
        states.append(verbs.state(verb))
    (verbs.out if verb in ("export", "quantize") else folder).joinpath("mine.txt").write_text("kept")
    for trial in range(4 * count):
        if outcome.killed == count:
            break
        if verb == "calibrate" and verbs.state(verb) >= BATCHES:
            verbs.statistics.unlink(missing_ok=True)
        before = verbs.state(verb)
        verbs.seen.write_bytes(bytes(8))
        is_whole = _killed(verbs, verb, trial, random.random() * seconds * 1.05) < 0
        outcome.finished += is_whole
        outcome.killed += not is_whole
        outcome.left += bool(verbs.leftovers())
        try:
            now = verbs.state(verb)
        except Exception as error:
            outcome.problems.append(f"trial {trial}: what is there cannot be read: {error!r}")
            continue
        if verb == "calibrate":
            asked = verbs.asked()
            outcome.most_lost = max(outcome.most_lost, asked - now)
            if not before <= now or asked - now > JOURNAL:
                outcome.problems.append(f"trial {trial}: {now} batches are there, {asked} were asked for")
        elif now not in states:
            outcome.problems.append(f"trial {trial}: neither old nor new: {now}")
    _killed(verbs, verb, 0, None)
    if verb == "calibrate" and not verbs.same_as_whole():
        outcome.problems.append("statistics of parts are not those of one pass")
    outcome.problems += [f"left after the next run: {path}" for path in verbs.leftovers()]
    if not list(folder.rglob("mine.txt")):
        outcome.problems.append("a file of the user is gone")
    return outcome


def _killed(verbs: Verbs, verb: str, turn: int, after: float | None) -> float:
    """Run a verb in a fork and kill it `after` so many seconds from where it says that it begins.

    The seconds that it took without a kill; a negative number where it ended before the kill; 0 where it was killed.
    """
    reading, writing = os.pipe()
    temporary = verbs.folder / "tmp"
    temporary.mkdir(exist_ok=True)
    child = os.fork()
    if not child:
        os.environ["TMPDIR"] = str(temporary)
        _run(lambda: verbs.names[verb](turn, lambda: os.close(writing) or None))
    os.close(writing)
    os.read(reading, 1)  # it ends when the child closes its side
    os.close(reading)
    start = time.perf_counter()
    if after is not None:
        while time.perf_counter() - start < after:
            if os.waitpid(child, os.WNOHANG)[0]:
                return -1.0
            time.sleep(0.0005)
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise RuntimeError(f"{verb} ended with {status}")
    return 0.0 if status else (time.perf_counter() - start if after is None else -1.0)


def _in_fork(call: object) -> None:
    child = os.fork()
    if not child:
        _run(call)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("what the trials start from could not be made")


def _run(call: object) -> None:
    """In a fork: the call, and then the end, without what this process would do at its end."""
    import tempfile
    import traceback

    tempfile.tempdir = None
    try:
        call()  # type: ignore[operator]
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def fresh(folder: Path) -> Path:
    """An empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
