"""A pass in this process; batches of one sample each run several at a time where that gives the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from isobit.backend.checked_model import CheckedModel
from isobit.data import Batch
from isobit.data.joined import TOGETHER, Joining, Split
from isobit.errors import IsobitError
from isobit.graph.sites import Input, Tensor
from isobit.statistics.observer import Observer, Request, Stage
from isobit.statistics.sampling import sample

JOINED = (
    f"batches of one sample were run {TOGETHER} at a time: the first {TOGETHER} of a pass gave the same bits alone and "
    "together"
)


@dataclass(frozen=True)
class RunHere:
    """A runner of passes (`isobit.quantsim.observe.Runner`); `notes` say where batches were joined.

    Means of joined batches are added up in float64 here, and in float32 where a backend reduces them in its graph: a
    pass that is to be gone on with later (`joins` is False) has each batch alone.
    """

    notes: dict[str, None]
    joins: bool = True

    def __call__(
        self, model: CheckedModel, batches: Iterator[Batch], requests: Sequence[Request], count: Callable[[int], None]
    ) -> None:
        """Run every batch in this process."""
        first = list(islice(batches, 1))
        joining = Joining.of(model.graph, first[0]) if first and requests and self.joins else None
        if joining is not None:
            first += islice(batches, 2 * TOGETHER - 1)
        batches = chain(first, batches)
        if joining is not None and len(first) == 2 * TOGETHER:
            batches = self._joined(model, batches, joining, requests, count)

        def counted() -> Iterator[Batch]:
            for batch in batches:
                yield batch
                count(1)  # the next one is asked for because every observer has seen this one

        model.observe(counted(), requests)

    def _joined(
        self,
        model: CheckedModel,
        batches: Iterator[Batch],
        joining: Joining,
        requests: Sequence[Request],
        count: Callable[[int], None],
    ) -> Iterator[Batch]:
        """Run batches together as long as that is the same; returns those that are left.

        The first ones run alone, and then together once more: every observed tensor must have the same bits. A session
        of whole tensors serves both, whatever the number of samples.
        """
        tensors: dict[tuple[Tensor | Input, Stage], _EachSample] = {}
        for request in requests:
            tensors.setdefault((request.site, request.stage), _EachSample()).observers.append(request.observer)
        group = list(islice(batches, TOGETHER))
        together, seen, is_same = joining.join(group), 0, False

        def alone(some: Sequence[Batch]) -> Iterator[Batch]:
            nonlocal seen
            for batch in some:
                yield batch
                seen += 1
                count(1)

        def fed() -> Iterator[Batch]:
            nonlocal is_same
            yield from alone(group)
            for tensor in tensors.values():
                tensor.mode = "compare"
            if together is not None:
                yield together
            is_same = all(tensor.split is not None for tensor in tensors.values())
            while is_same and (some := list(islice(batches, TOGETHER))):
                joined = joining.join(some) if len(some) == TOGETHER else None
                for tensor in tensors.values():
                    tensor.mode = "alone" if joined is None else "together"
                if joined is None:
                    yield from alone(some)
                else:
                    yield joined
                    count(len(some))

        try:
            model.observe(fed(), [Request(site, tensor, stage) for (site, stage), tensor in tensors.items()])
        except IsobitError:  # a size of one sample, in the model or in what its example decided
            if is_same or seen < len(group):
                raise
        if is_same:
            self.notes[JOINED] = None
        return batches


class _EachSample:
    """Hands a tensor to its observers, sample by sample; what came alone first is kept to compare with."""

    wants: Literal["tensor"] = "tensor"

    def __init__(self) -> None:
        self.observers: list[Observer] = []
        self.mode: Literal["first", "compare", "together", "alone"] = "first"
        self.split: Split | None = None
        self._first: list[NDArray[Any]] = []

    def update(self, batch: NDArray[np.float32], channel_axis: int | None = None) -> None:
        """Compare, or hand on."""
        if self.mode == "compare":
            self.split, self._first = Split.of(self._first, batch), []
            return
        if self.mode == "first":
            self._first.append(np.array(batch))
        split = self.split if self.mode == "together" else None
        for observer in self.observers:
            if split is None:
                observer.update(batch, channel_axis)
            else:
                _observe_each(observer, batch, channel_axis, split)


_NOTHING = np.zeros(0, np.float32)


def _observe_each(observer: Observer, joined: NDArray[np.float32], channel_axis: int | None, split: Split) -> None:
    """Feed an observer as if each sample had come alone.

    Sums of finite values do not ask where one sample ends, and counts do not either: of these the bounds alone are told
    one by one.
    """
    is_plain = split.axis == 0 and channel_axis != 0 and joined.size > 0 and bool(np.isfinite(joined).all())
    if is_plain and observer.wants in ("means", "moments"):
        observer.update(joined, channel_axis)
    elif is_plain and observer.wants == "sample":
        samples = joined.reshape(TOGETHER, -1)
        bounds = list(zip(samples.min(axis=1).tolist(), samples.max(axis=1).tolist(), strict=True))
        chosen = sample(joined, channel_axis, observer.limit)
        for low, high in bounds:  # in order, and what was chosen of all with the first
            observer.absorb(low, high, chosen, samples.shape[1])
            chosen = _NOTHING
    else:
        for part in split.parts(joined, TOGETHER):
            observer.update(part, channel_axis)
