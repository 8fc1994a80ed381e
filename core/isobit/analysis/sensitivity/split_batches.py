"""Samples of batches: the first ones and the rest, or those from one to another."""

from __future__ import annotations

from collections.abc import Sequence

from isobit.data import Batch
from isobit.data.samples import SampleAxes


def split(batches: Sequence[Batch], axes: SampleAxes, some: int) -> tuple[list[Batch], list[Batch]]:
    """The first samples, `some` or a few more where a batch cannot be cut, and the rest."""
    head: list[Batch] = []
    rest: list[Batch] = []
    for batch in batches:
        size, left = axes.size([batch]), some - axes.size(head)
        front = taken(batch, axes, 0, left) if 0 < left < size else batch
        (head if left > 0 else rest).append(front)
        if front is not batch:
            rest.append(taken(batch, axes, left, size))
    return head, rest


def taken(batch: Batch, axes: SampleAxes, start: int, end: int) -> Batch:
    """These samples of a batch; the batch itself where the model's own batch size is fixed, or nothing says which."""
    cut = {} if axes.fixed is not None else axes.cut(batch)
    if not cut or (start == 0 and end >= axes.size([batch])):
        return batch
    samples = slice(start, end)
    return {
        name: array[(slice(None),) * cut[name] + (samples,)] if name in cut else array for name, array in batch.items()
    }
