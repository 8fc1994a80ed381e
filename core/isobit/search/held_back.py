"""Data in two parts: what is calibrated on, and every fourth batch, or the last of fewer, which judges the result."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from isobit.data import Batch, Dataset
from isobit.data.samples import SampleAxes
from isobit.errors import DataError
from isobit.graph.graph import Graph

#: One of so many batches is held back, and at most so many samples of them are kept.
_PART, _KEPT = 4, 256

#: Batches below which whole arrays are cut into smaller ones, so that some can be held back.
_FEWEST = 8


@dataclass(frozen=True)
class Parts:
    """`calibration` is data again; `judged` are batches that it does not hold, or some of it where none is held back.

    `digest` is a hash of all of it.
    """

    calibration: Any
    judged: list[Batch]
    is_held_back: bool
    samples: int
    digest: str


def divide(
    data: Any,
    graph: Graph,
    *,
    hold_back: bool,
    batch_size: int,
    inputs: Callable[[Any], Any] | None,
    ignore_non_finite: bool,
) -> Parts:
    """Divide the data, in one pass over it. Raises DataError for an iterator, which serves once."""

    def opened(size: int) -> Dataset:
        return Dataset(data, graph, batch_size=size, inputs=inputs, ignore_non_finite=ignore_non_finite)

    dataset, axes = opened(batch_size), SampleAxes.of(graph)
    if dataset.is_one_shot:
        raise DataError("auto_quantize goes through the data many times, and an iterator serves once: pass a list")
    if hold_back and 0 < len(dataset) < _FEWEST and axes.fixed is None:
        dataset = opened(max(1, axes.size(dataset) // _FEWEST))
    part = len(dataset) if 1 < len(dataset) < _PART else _PART
    digest = hashlib.blake2b(digest_size=16)
    judged: list[Batch] = []
    first: list[Batch] = []
    count = 0
    for index, batch in enumerate(dataset):
        count += 1
        for name, array in batch.items():
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(repr(array.tolist()).encode() if array.dtype.kind == "O" else array.tobytes())
        apart = judged if index % part == part - 1 else first
        if axes.size(apart) < _KEPT:
            apart.append(batch)
    is_held_back = hold_back and bool(judged)
    return Parts(
        dataset.without(range(part - 1, count, part) if is_held_back else ()),
        judged if is_held_back else first,
        is_held_back,
        axes.size(judged if is_held_back else first),
        digest.hexdigest(),
    )
