"""Latency of the float files and of the quantized one, measured turn by turn on this machine."""

from __future__ import annotations

import math
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
#: spin for a while; the best of several runs does not see them. Both models have the same number of runs in a turn: the
#: best of more runs is lower.
_TURN_RUNS, _TURN_SECONDS = 2, 0.02
#: Rounds go on until so many of them gave no better time, but not longer than the last figure in seconds.
_FEWEST_ROUNDS, _ROUNDS_WITHOUT_GAIN, _SECONDS, _MOST_SECONDS = 3, 10, 1.0, 6.0
_GAIN = 0.98
_STEADY = 1.25  # if the ratio of the rounds varies by more, the machine was busy
#: Of so few rounds the best may well be one that was disturbed, so that they have to be more alike.
_FEW_ROUNDS, _STEADY_OF_FEW = 8, 1.1
_INTERRUPTED = 1.05  # if the best run took so many times what its thread had of a processor, others had the rest
#: The network in float as isobit writes it takes no turns where a run of the others takes longer (seconds).
_LONGEST_OF_THREE = 0.3
_SHORTEST = 1e-7  # seconds; a clock that stands still meanwhile counts as this
_FINE_CLOCK = 1e-5  # seconds; on some systems the clock of a thread goes on in steps of a time slice

#: What a time is: that of the clock on the wall, or what one thread had of a processor.
Clock = Literal["wall", "processor"]
_CLOCKS: dict[Clock, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.thread_time}


@dataclass(frozen=True)
class Ratio:
    """A ratio of best times; `low` and `high` are the first and the ninth decile of the ratios of single rounds."""

    best: float
    low: float
    high: float


@dataclass(frozen=True)
class Tidied:
    """The network in float as isobit writes it: best milliseconds, beside the float file as given, and the quantized.

    `tidying` is its time over that of the file as given, None where there is none to run; `integers` the time of the
    quantized file over its own.
    """

    float_ms: float
    tidying: Ratio | None
    integers: Ratio


@dataclass(frozen=True)
class Latency:
    """Best milliseconds a batch of each file, and their ratio; None where there is no float file to run.

    `ratio_low` and `ratio_high` are the first and the ninth decile of the ratios of single rounds: the spread.
    `clock` is ``"processor"`` where other programs kept the machine busy: then it is what one thread computed, which
    does not count the time that others had. `interruption` is the time of the best run on the wall over what its thread
    had of a processor, the largest of all files; None where that tells nothing.
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
    interruption: float | None = None
    tidied: Tidied | None = None

    @property
    def is_steady(self) -> bool:
        """Whether the best runs were not interrupted, and the rounds gave about the same ratio."""
        if self.interruption is not None and self.interruption > _INTERRUPTED:
            return False
        limit = _STEADY if self.rounds >= _FEW_ROUNDS else _STEADY_OF_FEW
        return self.ratio_low is None or self.ratio_high is None or self.ratio_high <= limit * self.ratio_low


def measure(
    original: Deployed | None,
    quantized: Deployed,
    batch: Batch,
    threads: int,
    clock: Clock = "wall",
    *,
    tidied: Deployed | None = None,
) -> Latency:
    """Time the models on one batch, turn by turn, so that a busy machine slows all alike.

    The best time of each counts: what other processes add is never negative. With the clock `"processor"` all models
    must compute in the calling thread (`Deployed.computes_in_caller`, one thread). `tidied` is the network in float as
    isobit writes it; it is left out where runs take long.
    """
    models = [model for model in (original, quantized) if model is not None]
    warm = [_warm(model, batch, clock) for model in models]
    if tidied is not None and max(warm) <= _LONGEST_OF_THREE:
        models.insert(-1, tidied)
        warm.append(_warm(tidied, batch, clock))
    else:
        tidied = None
    tells = clock == "wall" and processor_time_tells(*models)
    runs = max(_TURN_RUNS, math.ceil(_TURN_SECONDS / max(min(warm), _SHORTEST)))
    rounds: list[list[float]] = []
    best, had = [np.inf] * len(models), [np.inf] * len(models)
    wall = _CLOCKS["wall"]
    last_gain, begin = 0, wall()
    while not _enough(len(rounds), last_gain, wall() - begin):
        turns = [min(_run(model, batch, clock) for _ in range(runs)) for model in models]
        rounds.append([now for now, _ in turns])
        if any(now < _GAIN * before for (now, _), before in zip(turns, best, strict=True)):
            last_gain = len(rounds)
        for index, turn in enumerate(turns):
            best[index], had[index] = min(turn, (best[index], had[index]))

    def ratio(after: int, before: int) -> Ratio:
        spread = np.quantile([turn[after] / turn[before] for turn in rounds], (0.1, 0.9))
        return Ratio(best[after] / best[before], *map(float, spread))

    given = None if original is None else ratio(-1, 0)
    tidying = None if original is None else ratio(-2, 0)
    return Latency(
        float_ms=None if original is None else 1e3 * best[0],
        quantized_ms=1e3 * best[-1],
        ratio=None if given is None else given.best,
        ratio_low=None if given is None else given.low,
        ratio_high=None if given is None else given.high,
        batch=len(next(iter(batch.values()))),
        threads=threads,
        rounds=len(rounds),
        runtime=quantized.runtime,
        clock=clock,
        interruption=max(now / max(own, _SHORTEST) for now, own in zip(best, had, strict=True)) if tells else None,
        tidied=None if tidied is None else Tidied(1e3 * best[-2], tidying, ratio(-1, -2)),
    )


def _warm(model: Deployed, batch: Batch, clock: Clock) -> float:
    return min(_run(model, batch, clock)[0] for _ in range(_WARM_UP))


def processor_time_tells(*models: Deployed | None) -> bool:
    """Whether the processor time of a thread is the latency of all these with one thread, on a clock that is fine."""
    fine = time.get_clock_info("thread_time").resolution <= _FINE_CLOCK
    return fine and all(model is None or model.computes_in_caller for model in models)


def _enough(rounds: int, last_gain: int, seconds: float) -> bool:
    if rounds < _FEWEST_ROUNDS:
        return False
    return seconds > _MOST_SECONDS or (seconds > _SECONDS and rounds - last_gain >= _ROUNDS_WITHOUT_GAIN)


def _run(model: Deployed, batch: Batch, clock: Clock) -> tuple[float, float]:
    """The seconds of one run on a clock, and what the calling thread had of a processor meanwhile."""
    timer = _CLOCKS[clock]
    # The clock that counts is the inner one, so that reading the other costs it nothing.
    own_start = _CLOCKS["processor"]()
    start = timer()
    model.run(batch)
    seconds = timer() - start
    return seconds, _CLOCKS["processor"]() - own_start


def first_samples(batch: Batch, count: int, fixed: int | None) -> Batch:
    """At most `count` samples of a batch; all of it where the model's batch is fixed."""
    return dict(batch) if fixed else {name: array[:count] if array.ndim else array for name, array in batch.items()}
