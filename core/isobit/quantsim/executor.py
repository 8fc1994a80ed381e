"""Passes on an executor: processes here or machines of a cluster, with the result of one process, bit for bit.

Workers get the bytes of the model's state and chunks of batches, and return the bytes of their reducers, which are
merged in the order of the chunks. A chunk whose worker dies is computed again.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from dataclasses import dataclass
from itertools import islice
from typing import Any

from isobit.backend.checked_model import CheckedModel
from isobit.backend.contract import Backend
from isobit.data import Batch
from isobit.errors import IsobitError
from isobit.quantsim.observe import Count
from isobit.statistics.layer_rows.rows import Rows
from isobit.statistics.observer import Request
from isobit.statistics.reducer import merge, requests_from_bytes, requests_to_bytes

ExecutorLike = Executor | Callable[[], Executor]

#: Batches of a chunk: as many as a run of sums (`run_sums`), so that merging gives the bits of one process.
CHUNK = 8
PENDING = 16  # chunks that wait or run: what is read ahead of the merge is bounded
ATTEMPTS = 3

_restored: dict[str, CheckedModel] = {}  # in a worker: the model that it got last


def observe_chunk(backend: Backend, state: bytes, blank: bytes, batches: list[Batch]) -> bytes:
    """In a worker: the reducers fed with `batches` as bytes; `blank` holds the requests with empty ones."""
    key = hashlib.sha256(state).hexdigest()
    if key not in _restored:
        _restored.clear()
        _restored[key] = CheckedModel.of(backend.restore(state))
    return _observe(_restored[key], blank, batches)


def _observe(model: CheckedModel, blank: bytes, batches: list[Batch]) -> bytes:
    requests = requests_from_bytes(blank)
    model.observe(batches, requests)
    return requests_to_bytes(requests)


@dataclass(frozen=True)
class OnExecutor:
    """A runner of passes (`isobit.quantsim.observe.Runner`) whose batches an executor's workers share.

    An executor that breaks with its worker (a process pool) is replaced where a callable was given that makes one, else
    this process does the rest, and `notes` say so. An error that isobit raises is passed on.
    """

    executor: ExecutorLike
    backend: Backend
    notes: dict[str, None]

    def __call__(
        self, model: CheckedModel, batches: Iterator[Batch], requests: Sequence[Request], count: Count
    ) -> None:
        """Merge what the workers saw into the observers of `requests`, chunk by chunk, in order."""
        run = _Run(self.executor, self.backend, model, requests)
        try:
            for chunk, parts in run.results(_chunks(batches)):
                for request, part in zip(requests, parts, strict=True):
                    merge(request.observer, part.observer)
                count(len(chunk))
        finally:
            run.close()
            if run.here:
                self.notes[f"{run.here} chunk(s) of a pass ran in this process: {', '.join(run.reasons)}"] = None


def _chunks(batches: Iterator[Batch]) -> Iterator[list[Batch]]:
    while chunk := list(islice(batches, CHUNK)):
        yield chunk


def _samples(batch: Batch) -> int:
    return max((array.shape[0] for array in batch.values() if array.ndim), default=1)


def _blank(requests: Sequence[Request], samples: int | None = None) -> list[Request]:
    """The requests with empty reducers, for a chunk before which there are so many samples (None: what these saw)."""
    blanks = []
    for request in requests:
        reducer: Any = request.observer
        blank = reducer.blank()
        if isinstance(reducer, Rows):
            blank.first = reducer.first + (reducer.samples if samples is None else samples)
        blanks.append(Request(request.site, blank, request.stage))
    return blanks


def _follows(earlier: Request, later: Request) -> bool:
    """Whether a part begins where the rows before it end: an axis 0 that is not the batch's has other samples."""
    a, b = earlier.observer, later.observer
    return not isinstance(a, Rows) or (isinstance(b, Rows) and b.first == a.first + a.samples)


class _Run:
    """The chunks in flight on an executor, in order."""

    def __init__(
        self, executor: ExecutorLike, backend: Backend, model: CheckedModel, requests: Sequence[Request]
    ) -> None:
        self._make = None if isinstance(executor, Executor) else executor
        self._executor = executor if isinstance(executor, Executor) else executor()
        self._model, self._requests = model, requests
        self._arguments = backend, model.state()
        rows = (request.observer for request in requests if isinstance(request.observer, Rows))
        self._samples = max((observer.samples for observer in rows), default=0)
        self._flying: deque[tuple[list[Batch], bytes, Future[bytes] | None]] = deque()
        self._broken = 0
        self.here = 0  # chunks that no worker did
        self.reasons: dict[str, None] = {}

    def results(self, chunks: Iterator[list[Batch]]) -> Iterator[tuple[list[Batch], list[Request]]]:
        """Each chunk and what was seen of it, in order."""
        for chunk in chunks:
            blank = requests_to_bytes(_blank(self._requests, self._samples))
            self._samples += sum(_samples(batch) for batch in chunk)
            self._flying.append((chunk, blank, self._submit(chunk, blank)))
            if len(self._flying) == PENDING:
                yield self._next()
        while self._flying:
            yield self._next()

    def close(self) -> None:
        """Let go what is in flight, and the executor if it was made here."""
        for _, _, future in self._flying:
            if future is not None:
                future.cancel()
        if self._make is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def _submit(self, chunk: list[Batch], blank: bytes) -> Future[bytes] | None:
        """None: the executor is broken for good."""
        try:
            return self._executor.submit(observe_chunk, *self._arguments, blank, chunk)
        except BrokenExecutor:
            return None

    def _next(self) -> tuple[list[Batch], list[Request]]:
        chunk, blank, future = self._flying.popleft()
        for _ in range(ATTEMPTS):
            if future is None:
                self.reasons["workers died"] = None
                break
            try:
                parts = requests_from_bytes(future.result())
                if all(map(_follows, self._requests, parts)):
                    return chunk, parts
                self.reasons["a tensor has other samples than its batch"] = None
                break
            except IsobitError:
                raise
            except BrokenExecutor:
                self._renew()
                future = self._submit(chunk, blank)
            except Exception:  # a cluster has its own errors for a worker that is gone
                future = self._submit(chunk, blank)
        else:
            self.reasons["workers died"] = None
        self.here += 1
        blanks = _blank(self._requests)
        self._model.observe(chunk, blanks)
        return chunk, blanks

    def _renew(self) -> None:
        """Another executor for one that broke, and everything in flight on it again."""
        self._broken += 1
        if self._make is None or self._broken >= ATTEMPTS:
            return
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._executor = self._make()
        self._flying = deque((chunk, blank, self._submit(chunk, blank)) for chunk, blank, _ in self._flying)
