"""One pass over the data of a calibration: batches in, statistics out, interruptible and resumable."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import FrameType, TracebackType
from typing import TypeVar

from isobit.backend import BackendModel, Request
from isobit.channel_range import ChannelRange
from isobit.data import Batch, Dataset
from isobit.errors import DataError
from isobit.plan import Plan
from isobit.progress import track
from isobit.resolve import blank_statistics
from isobit.sites import Site, Tensor
from isobit.statistics import Histogram, Statistics

T = TypeVar("T")

ExecutorLike = Executor | Callable[[], Executor]


@dataclass(frozen=True)
class Observation:
    """How to observe: `limit` elements counted of a sample, on `executor` or here, from and into the file `resume`."""

    limit: int | None
    executor: ExecutorLike | None = None
    resume: Path | None = None
    progress: bool | None = None

    def statistics(self, model: BackendModel, plan: Plan, dataset: Dataset) -> Statistics:
        """The statistics that `plan` needs over all batches, those in the file `resume` counted in.

        Ctrl-C with `resume` ends the pass after the batch that is running and writes the file; then comes
        KeyboardInterrupt, which says so.
        """
        found = blank_statistics(plan, self.limit)
        if self.resume is not None and self.resume.exists():
            found = self._earlier(found)
        with _EndOfBatch() if self.resume is not None else nullcontext() as stop:
            self._observe(model, dataset, found, stop)
        if self.resume is not None:
            found.save(self.resume)
        if stop is not None and stop.asked:
            raise KeyboardInterrupt(f"the statistics of {found.batches} batches are in {self.resume}")
        return found

    def _earlier(self, blank: Statistics) -> Statistics:
        found = Statistics.load(self.resume or "")
        try:
            found.merge(blank)  # which checks that they fit
        except DataError as error:
            raise DataError(f"{self.resume}: not of this model and these settings: {error}") from error
        return found

    def _observe(self, model: BackendModel, dataset: Dataset, found: Statistics, stop: _EndOfBatch | None) -> None:
        left: Iterator[Batch] = islice(dataset, found.batches, None)
        total = max(0, len(dataset) - found.batches)
        if stop is not None:
            left = stop.passing(left)
        if self.executor is not None:
            from isobit.executing import observe_on

            merged = observe_on(self.executor, model, left, found, dataset.notes)
            for _ in track(merged, "calibrating", total, show=self.progress):
                pass
            return
        counted = _counted(track(left, "calibrating", total, show=self.progress), found)
        model.observe(counted, found.requests())


def _counted(batches: Iterable[T], found: Statistics) -> Iterator[T]:
    """The batches; each is counted when the next one is asked for, because then every observer has seen it."""
    for batch in batches:
        yield batch
        found.batches += 1


class _EndOfBatch(AbstractContextManager["_EndOfBatch"]):
    """Turns the first Ctrl-C into the end of the data; a second one interrupts at once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> _EndOfBatch:
        self._before = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def passing(self, items: Iterable[T]) -> Iterator[T]:
        """The items until Ctrl-C."""
        for item in items:
            yield item
            if self.asked:
                return


def refuse_non_finite(statistics: Statistics, model: BackendModel, dataset: Dataset) -> None:
    """Raise DataError that names the first tensor that held NaN or infinity, and the batch where it did."""
    bad = next(
        (
            site
            for site, found in statistics.items()
            if isinstance(found, Histogram | ChannelRange) and found.non_finite
        ),
        None,
    )
    if bad is None:
        return
    where = "" if dataset.is_one_shot else f" in batch {_first_bad_batch(bad, model, dataset)}"
    raise DataError(
        f"tensor {str(bad)!r} holds NaN or infinity{where}, though the inputs are finite: "
        "check the model, or ask to ignore it"
    )


def _first_bad_batch(site: Site, model: BackendModel, dataset: Dataset) -> str:
    if not isinstance(site, Tensor):
        return "unknown"
    for index, batch in enumerate(dataset):
        histogram = Histogram()
        model.observe([batch], [Request(site, histogram)])
        if histogram.non_finite:
            return str(index)
    return "unknown"
