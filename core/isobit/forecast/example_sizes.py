"""The sizes that a model leaves open, as they are for one sample: the model runs once and every tensor is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from isobit.backend.checked_model import CheckedModel
from isobit.data import Batch
from isobit.data.samples import SampleAxes, cut_batches
from isobit.graph.graph import Graph
from isobit.graph.sites import Tensor
from isobit.statistics.observer import Request


class _Shape:
    """Keeps the shape of the last batch of a tensor; `sizes` is None where none came."""

    wants: Literal["tensor"] = "tensor"

    def __init__(self) -> None:
        self.sizes: tuple[int, ...] | None = None

    def update(self, batch: NDArray[np.float32], channel_axis: int | None = None) -> None:
        self.sizes = batch.shape


def one_sample(graph: Graph, batch: Mapping[str, NDArray[Any]]) -> Batch:
    """The first sample of a batch; the batch itself where the model says no axis of samples, or has a fixed one."""
    axes = SampleAxes.of(graph)
    if axes.fixed is not None:
        return dict(batch)
    return next(iter(cut_batches(batch, axes.cut(batch), 1, 1)), dict(batch))


def with_sizes_of(model: CheckedModel, sample: Batch) -> Graph:
    """The graph of a model with the shapes that its float tensors have on a sample, where it leaves sizes open."""
    graph = model.graph
    shapes = {name: _Shape() for name in graph.tensors if graph.is_float(name)}
    model.observe([sample], [Request(Tensor(name), shape) for name, shape in shapes.items()])
    found = {name: shape.sizes for name, shape in shapes.items() if shape.sizes is not None}
    found.update({name: np.shape(array) for name, array in sample.items() if name in graph.tensors})
    return replace(
        graph,
        tensors={
            name: replace(info, shape=found[name]) if name in found and not _is_told(info.shape) else info
            for name, info in graph.tensors.items()
        },
    )


def _is_told(shape: tuple[Any, ...] | None) -> bool:
    """Whether all sizes but that of the batch are numbers already."""
    return shape is not None and all(isinstance(size, int) for size in shape[1:])
