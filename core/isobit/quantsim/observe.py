"""Passes over data: batches in, reducers fed, shown while they run, interruptible and resumable.

Calibration and techniques observe through the same door.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from itertools import chain, islice
from pathlib import Path
from types import FrameType, TracebackType
from typing import Protocol, TypeVar

from isobit.backend.checked_model import CheckedModel
from isobit.data import Batch, Dataset
from isobit.deadline import check_time
from isobit.errors import DataError
from isobit.files import check_file_writable, is_there
from isobit.graph.fingerprint import of_arrays
from isobit.graph.sites import Site, Tensor
from isobit.quantsim.passes.progress import progress_bar, track
from isobit.quantsim.simulation import Simulation
from isobit.statistics.channel_range import ChannelRange
from isobit.statistics.histogram import Histogram
from isobit.statistics.observer import Request
from isobit.statistics.statistics import Seen, Statistics, load_parts, save_parts

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Batches between two writings of the file `resume`: what a killed process loses at most.
JOURNAL = 64

#: Is told how many more batches every observer has seen.
Count = Callable[[int], None]


class Runner(Protocol):
    """Where a pass runs."""

    def __call__(
        self, model: CheckedModel, batches: Iterator[Batch], requests: Sequence[Request], count: Count
    ) -> None:
        """Feed the observers of `requests` with the batches in order; `count` is called when all have seen them."""
        ...


class Passes:
    """How a simulation goes through data: on which runner, with a bar or not, from and into the file `resume`."""

    def __init__(
        self,
        simulation: Simulation,
        dataset: Dataset,
        runner: Runner,
        resume: Path | None = None,
        progress: bool | None = None,
    ) -> None:
        self.dataset = dataset
        self._simulation, self._runner, self._progress = simulation, runner, progress
        self._file = None if resume is None else ResumeFile(resume)
        self._batches = 0

    @property
    def count(self) -> float:
        """How often the data was gone through; a part of it counts as a part."""
        per_pass = len(self.dataset) or self.dataset.batches_seen
        return self._batches / per_pass if per_pass else 0.0

    @property
    def resumes(self) -> bool:
        """Whether what is seen goes into a file, and comes from it."""
        return self._file is not None

    def on(self, dataset: Dataset) -> Passes:
        """Passes with the same settings over other data, without the file."""
        return Passes(self._simulation, dataset, self._runner, None, self._progress)

    def each(self, items: Sequence[T], what: str) -> Iterator[T]:
        """The items of long work between passes one by one, with a bar where passes have one."""
        return track(items, what, len(items), show=self._progress)

    def start(self, blank: Statistics | None = None) -> Statistics:
        """The statistics of the model as it is now on this data: none yet, or what the file `resume` holds of them.

        What is there of other data is forgotten. `blank` are the ranges that will be asked for: a file with others is
        of another model or of other settings.
        """
        simulation = self._simulation
        if simulation.data is not self.dataset:
            simulation.statistics, simulation.data = Statistics(), self.dataset
        if self._file is not None and not simulation.statistics.model:
            simulation.statistics = self._file.earlier(simulation.state_fingerprint(), blank)
        return simulation.statistics

    def __call__(self, model: CheckedModel, seen: Sequence[Seen], what: str) -> None:
        """Feed the reducers with the batches that each has not seen yet.

        With `resume` the file is written every 64 batches. Ctrl-C ends the pass after the batch that is running and
        writes it too; then comes KeyboardInterrupt, which says so. What is observed of the simulation's own model is of
        the float model, without what techniques added to make up for quantization.
        """
        is_own = model is self._simulation.model
        observed = self._simulation.float_model() if is_own else model
        batches = _in_order(self.dataset, seen)
        counts = sorted({item.batches for item in seen}) or [0]
        with ExitStack() as stack:
            stop = stack.enter_context(_EndOfBatch()) if self._file is not None else None
            advance = stack.enter_context(
                progress_bar(what, max(0, len(self.dataset) - counts[0]), show=self._progress)
            )
            if self._file is not None:
                batches = self._file.checked(batches, self._simulation.statistics, counts[-1], len(self.dataset))
            batches = islice(batches, counts[0], None)
            if stop is not None:
                batches = stop.passing(batches)
            for start, end in zip(counts, [*counts[1:], None], strict=True):
                if stop is not None and stop.asked:
                    break
                behind = [item for item in seen if item.batches <= start]
                part = batches if end is None else islice(batches, end - start)
                self._run(observed, part, behind, advance)
        interrupted = stop is not None and stop.asked
        logger.info("%s: %d tensors observed, %.3g passes so far", what, len(seen), self.count)
        for item in seen:
            item.complete = not interrupted
        if is_own and not model.encodings():  # before a technique changes it
            self._simulation.keep_reference(self.dataset.head)
        if self._file is not None:
            self._file.write(self._simulation.statistics)
        if self._file is not None and interrupted:
            count = min(item.batches for item in seen)
            raise KeyboardInterrupt(f"the statistics of {count} batches are in {self._file.path}")

    def _run(self, model: CheckedModel, batches: Iterator[Batch], seen: Sequence[Seen], advance: Count) -> None:
        """One stretch of a pass; with `resume` the file is written every so many batches, so that no more is lost."""
        requests, count = [item.request for item in seen], self._counting(seen, advance)
        if self._file is None:
            self._runner(model, batches, requests, count)
            return
        while True:
            first = next(batches, None)
            if first is None:
                return
            self._runner(model, chain([first], islice(batches, JOURNAL - 1)), requests, count)
            self._file.write(self._simulation.statistics)

    def _counting(self, seen: Sequence[Seen], advance: Count) -> Count:
        def count(batches: int) -> None:
            check_time()
            self._batches += batches
            for item in seen:
                item.batches += batches
            advance(batches)

        return count


_SHUFFLED = (
    "the data comes in another order at each pass: every pass goes through all of it, and no sample can be held back"
)


def _in_order(dataset: Dataset, seen: Sequence[Seen]) -> Iterator[Batch]:
    """All batches. Where they come in another order than before, it is said, and reducers that go on begin anew."""
    batches = iter(dataset)
    first = next(batches, None) if dataset.first_seen is not None else None
    if first is None:
        return batches
    if not dataset.begins_with(first):
        dataset.notes[_SHUFFLED] = None
        for item in seen:
            if item.batches:
                item.reducer, item.batches = item.reducer.blank(), 0
    return chain([first], batches)


class ResumeFile:
    """The file of a pass that can be interrupted: statistics of a model in all states that were observed."""

    def __init__(self, path: Path) -> None:
        check_file_writable(path)
        self.path = path
        self._parts = {part.model: part for part in load_parts(path)} if is_there(path) else {}

    def earlier(self, model: str, blank: Statistics | None) -> Statistics:
        """What the file holds of the model with this fingerprint. Raises DataError where it holds nothing that fits."""
        statistics = self._parts.get(model)
        if statistics is None:
            return Statistics(model=model)
        if blank is not None and len(statistics):
            try:
                statistics.check_adds(blank)
            except DataError as error:
                raise DataError(f"{self.path}: not of this model and these settings: {error}") from error
        for item in chain(statistics.ranges(), statistics.further.values()):
            item.complete = False  # there may be more data by now
        return statistics

    def checked(self, batches: Iterator[Batch], statistics: Statistics, begun: int, count: int) -> Iterator[Batch]:
        """The batches of a pass, of which `begun` are in the file. Raises DataError where they are others.

        `count` is how many there are, 0 where it is not known.
        """
        first = next(batches, None)
        if first is None:
            return
        found, kept = of_arrays(first), statistics.first_batch
        advice = (
            "remove the file, or give the data with which it was begun, in the same order and batches; a loader that "
            "shuffles gives another order each time"
        )
        if begun and kept and kept != found:
            raise DataError(f"{self.path}: its {begun} batches began with another one than the data does: {advice}")
        if count and begun > count:
            raise DataError(f"{self.path}: it holds {begun} batches, and the data has {count}: {advice}")
        if not begun or not kept:
            statistics.first_batch = found
        yield first
        yield from batches

    def write(self, statistics: Statistics) -> None:
        """Write what there is now."""
        self._parts[statistics.model] = statistics
        save_parts(self.path, list(self._parts.values()), resumable=True)


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


def refuse_non_finite(statistics: Statistics, model: CheckedModel, dataset: Dataset) -> None:
    """Raise DataError that names the first tensor that held NaN or infinity, and the batch where it did."""
    bad = next(
        (
            site
            for site, reducer in statistics.items()
            if isinstance(reducer, Histogram | ChannelRange) and reducer.non_finite
        ),
        None,
    )
    if bad is None:
        return
    where = "" if dataset.is_one_shot else f" in batch {_first_bad_batch(bad, model, dataset)}"
    raise DataError(
        f"tensor {str(bad)!r} holds NaN or infinity{where}, though the inputs are finite: "
        "check the model, or pass ignore_non_finite=True"
    )


def _first_bad_batch(site: Site, model: CheckedModel, dataset: Dataset) -> str:
    if not isinstance(site, Tensor):
        return "unknown"
    for index, batch in enumerate(dataset):
        histogram = Histogram()
        model.observe([batch], [Request(site, histogram)])
        if histogram.non_finite:
            return str(index)
    return "unknown"
