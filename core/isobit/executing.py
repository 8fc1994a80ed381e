"""Observation on an executor: processes here or machines of a cluster, with the result of one process, bit for bit.

Workers get the bytes of the model's state and chunks of batches, and return the bytes of their statistics, which are
merged in the order of the chunks. A chunk whose worker dies is computed again.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future
from itertools import islice

from isobit.backend import BackendModel, Batch
from isobit.errors import IsobitError
from isobit.observation import ExecutorLike
from isobit.plugins import registry
from isobit.statistics import Statistics

CHUNK = 8  # batches
PENDING = 16  # chunks that wait or run: what is read ahead of the merge is bounded
ATTEMPTS = 3

_restored: dict[str, BackendModel] = {}  # in a worker: the model that it got last


def observe_chunk(backend: str, state: bytes, blank: bytes, batches: list[Batch]) -> bytes:
    """In a worker: the statistics of `batches` as bytes; `blank` holds empty reducers for the sites."""
    key = hashlib.sha256(state).hexdigest()
    if key not in _restored:
        _restored.clear()
        _restored[key] = registry().backend(backend).restore(state)
    return _observe(_restored[key], blank, batches)


def _observe(model: BackendModel, blank: bytes, batches: list[Batch]) -> bytes:
    found = Statistics.from_bytes(blank)
    model.observe(batches, found.requests())
    found.batches = len(batches)
    return found.to_bytes()


def observe_on(
    executor: ExecutorLike, model: BackendModel, batches: Iterable[Batch], found: Statistics, notes: dict[str, None]
) -> Iterator[None]:
    """Merge the statistics of `batches` into `found`, chunk by chunk; yields once for each batch that is merged.

    An executor that breaks with its worker (a process pool) is replaced where a callable was given that makes one, else
    this process does the rest, and `notes` say so. An error that isobit raises is passed on.
    """
    run = _Run(executor, model, found.blank().to_bytes())
    try:
        for chunk in run.results(_chunks(batches)):
            found.merge(chunk)
            yield from [None] * chunk.batches
    finally:
        run.close()
        if run.here:
            notes[f"workers died: {run.here} chunk(s) of the calibration ran in this process"] = None


def _chunks(batches: Iterable[Batch]) -> Iterator[list[Batch]]:
    source = iter(batches)
    while chunk := list(islice(source, CHUNK)):
        yield chunk


class _Run:
    """The chunks in flight on an executor, in order."""

    def __init__(self, executor: ExecutorLike, model: BackendModel, blank: bytes) -> None:
        self._make = None if isinstance(executor, Executor) else executor
        self._executor = executor if isinstance(executor, Executor) else executor()
        self._model, self._blank = model, blank
        self._arguments = registry().backend_for(model.native).name, model.state(), blank
        self._flying: deque[tuple[list[Batch], Future[bytes] | None]] = deque()
        self._broken = 0
        self.here = 0  # chunks that no worker did

    def results(self, chunks: Iterator[list[Batch]]) -> Iterator[Statistics]:
        """The statistics of each chunk, in order."""
        for chunk in chunks:
            self._flying.append((chunk, self._submit(chunk)))
            if len(self._flying) == PENDING:
                yield self._next()
        while self._flying:
            yield self._next()

    def close(self) -> None:
        """Let go what is in flight, and the executor if it was made here."""
        for _, future in self._flying:
            if future is not None:
                future.cancel()
        if self._make is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def _submit(self, chunk: list[Batch]) -> Future[bytes] | None:
        """None: the executor is broken for good."""
        try:
            return self._executor.submit(observe_chunk, *self._arguments, chunk)
        except BrokenExecutor:
            return None

    def _next(self) -> Statistics:
        chunk, future = self._flying.popleft()
        for _ in range(ATTEMPTS):
            if future is None:
                break
            try:
                return Statistics.from_bytes(future.result())
            except IsobitError:
                raise
            except BrokenExecutor:
                self._renew()
                future = self._submit(chunk)
            except Exception:  # a cluster has its own errors for a worker that is gone
                future = self._submit(chunk)
        self.here += 1
        return Statistics.from_bytes(_observe(self._model, self._blank, chunk))

    def _renew(self) -> None:
        """Another executor for one that broke, and everything in flight on it again."""
        self._broken += 1
        if self._make is None or self._broken >= ATTEMPTS:
            return
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._executor = self._make()
        self._flying = deque((chunk, self._submit(chunk)) for chunk, _ in self._flying)
