"""Latency of the float and of the quantized model, measured turn by turn on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from isobit.backend.optional import Deployed
    from isobit.data import Batch

_WARM_UP = 2
#: A turn of one model takes this many runs and seconds at least. Threads that wait for the next run of the other model
#: spin for a while; the best of several runs does not see them.
_TURN_RUNS, _TURN_SECONDS = 2, 0.02
#: Rounds go on until so many of them gave no better time, but not longer than the last figure in seconds.
_FEWEST_ROUNDS, _ROUNDS_WITHOUT_GAIN, _SECONDS, _MOST_SECONDS = 3, 10, 1.0, 6.0
_GAIN = 0.98
_STEADY = 1.25  # if the ratio of the rounds varies by more, the machine was busy
_FINE_CLOCK = 1e-5  # seconds; on some systems the clock of a thread goes on in steps of a time slice

#: What a time is: that of the clock on the wall, or what one thread had of a processor.
Clock = Literal["wall", "processor"]
_CLOCKS: dict[Clock, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.thread_time}


@dataclass(frozen=True)
class Latency:
    """Best milliseconds a batch of each file, and their ratio; None where there is no float file to run.

    `ratio_low` and `ratio_high` are the first and the ninth decile of the ratios of single rounds: the spread.
    `clock` is ``"processor"`` where other programs kept the machine busy: then it is what one thread computed, which
    does not count the time that others had.
    """

    float_ms: float | None
    quantized_ms: float
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    batch: int
    threads: int
    rounds: int
    runtime: str
    clock: Clock

    @property
    def is_steady(self) -> bool:
        """Whether the rounds gave about the same ratio."""
        return self.ratio_low is None or self.ratio_high is None or self.ratio_high <= _STEADY * self.ratio_low


def measure(
    original: Deployed | None, quantized: Deployed, batch: Batch, threads: int, clock: Clock = "wall"
) -> Latency:
    """Time both models on one batch, turn by turn, so that a busy machine slows both alike.

    The best time of each counts: what other processes add is never negative. With the clock `"processor"` both models
    must compute in the calling thread (`Deployed.computes_in_caller`, one thread).
    """
    models = [quantized] if original is None else [original, quantized]
    for model in models * _WARM_UP:
        model.run(batch)
    rounds: list[list[float]] = []
    best, last_gain, begin = [np.inf] * len(models), 0, time.perf_counter()
    while not _enough(len(rounds), last_gain, time.perf_counter() - begin):
        times = [_turn(model, batch, _CLOCKS[clock]) for model in models]
        rounds.append(times)
        if any(now < _GAIN * before for now, before in zip(times, best, strict=True)):
            last_gain = len(rounds)
        best = [min(now, before) for now, before in zip(times, best, strict=True)]
    size = len(next(iter(batch.values())))
    count, runtime = len(rounds), quantized.runtime
    if original is None:
        return Latency(None, best[0], None, None, None, size, threads, count, runtime, clock)
    low, high = np.quantile([after / before for before, after in rounds], (0.1, 0.9))
    ratio = best[1] / best[0]
    return Latency(best[0], best[1], ratio, float(low), float(high), size, threads, count, runtime, clock)


def processor_time_tells(*models: Deployed | None) -> bool:
    """Whether the processor time of a thread is the latency of all these with one thread, on a clock that is fine."""
    fine = time.get_clock_info("thread_time").resolution <= _FINE_CLOCK
    return fine and all(model is None or model.computes_in_caller for model in models)


def _enough(rounds: int, last_gain: int, seconds: float) -> bool:
    if rounds < _FEWEST_ROUNDS:
        return False
    return seconds > _MOST_SECONDS or (seconds > _SECONDS and rounds - last_gain >= _ROUNDS_WITHOUT_GAIN)


def _turn(model: Deployed, batch: Batch, clock: Callable[[], float]) -> float:
    """The best time of some runs in a row, in milliseconds."""
    times: list[float] = []
    while len(times) < _TURN_RUNS or sum(times) < _TURN_SECONDS:
        start = clock()
        model.run(batch)
        times.append(clock() - start)
    return min(times) * 1e3


def first_samples(batch: Batch, count: int, fixed: int | None) -> Batch:
    """At most `count` samples of a batch; all of it where the model's batch is fixed."""
    return dict(batch) if fixed else {name: array[:count] if array.ndim else array for name, array in batch.items()}
