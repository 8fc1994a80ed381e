"""Batches of one sample each, run several at a time: a run of a small model is mostly the cost of starting it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.data.samples import SampleAxes
from isobit.graph.graph import Graph, Node
from isobit.graph.ops import BODIES, RANDOM, SHAPE_SOURCES, SIZED_BY_VALUES

#: So many batches of one sample are run at once.
TOGETHER = 16

#: Elements of all tensors of one sample from which on the arithmetic is what takes the time, and memory counts.
_SMALL = 1 << 21

_NOT_JOINED = BODIES | RANDOM | SIZED_BY_VALUES

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Joining:
    """How batches of one sample are put together: `axes` are those of the inputs that hold the samples."""

    axes: Mapping[str, int]

    @classmethod
    def of(cls, graph: Graph, batch: Arrays) -> Joining | None:
        """None where `batch` holds more than one sample, where it is not open how many, and for a large model.

        Nor for a model that decides by values what it computes or how much of it, draws random numbers, or has a tensor
        of one size whatever the number of samples is.
        """
        samples = SampleAxes.of(graph)
        axes = {name: axis for name, axis in samples.by_name.items() if name in batch and batch[name].ndim > axis}
        if samples.fixed is not None or not axes or any(batch[name].shape[axis] != 1 for name, axis in axes.items()):
            return None
        symbols = set(samples.symbols.values())
        if any(node.op in _NOT_JOINED or _drops(graph, node, symbols) for node in graph.nodes):
            return None
        if _elements(graph, symbols, batch) > _SMALL:
            return None
        return cls(axes)

    def join(self, batches: Sequence[Arrays]) -> dict[str, NDArray[Any]] | None:
        """The batches as one; None where they differ in shape, or in an input that holds no samples."""
        first, joined = batches[0], dict[str, NDArray[Any]]()
        for name, values in first.items():
            arrays = [batch[name] for batch in batches]
            if name in self.axes:
                if any(array.shape != values.shape for array in arrays):
                    return None
                joined[name] = np.concatenate(arrays, self.axes[name])
            elif all(np.array_equal(array, values) for array in arrays):
                joined[name] = values
            else:
                return None
        return joined


@dataclass(frozen=True)
class Split:
    """Where the samples of a joined tensor lie; without an axis the tensor is the same for each of them."""

    axis: int | None

    @classmethod
    def of(cls, parts: Sequence[NDArray[Any]], joined: NDArray[Any]) -> Split | None:
        """None where `joined` is not, bit for bit, what came of the samples one by one."""
        shape = parts[0].shape
        if any(part.shape != shape for part in parts) or joined.ndim != len(shape):
            return None
        differing = [axis for axis, (one, all_) in enumerate(zip(shape, joined.shape, strict=True)) if one != all_]
        if len(differing) > 1:
            return None
        axis = differing[0] if differing else None
        expected = [*parts] if axis is None else [np.concatenate(parts, axis)]
        is_same = all(np.array_equal(each, joined, equal_nan=joined.dtype.kind in "fc") for each in expected)
        return cls(axis) if is_same else None

    def parts(self, joined: NDArray[Any], count: int) -> Iterator[NDArray[Any]]:
        """The tensor of each of so many batches."""
        if self.axis is None:
            yield from [joined] * count
        else:
            yield from np.split(joined, count, self.axis)


def _drops(graph: Graph, node: Node, symbols: Collection[str]) -> bool:
    """Whether values of however many samples become so many numbers: a mean or the largest length of all of them.

    Also a size of one sample, which is written into the model. The sizes of a tensor are no values of it.
    """
    if node.op in SHAPE_SOURCES:
        return False
    read = (graph.tensors[name].shape for name in node.inputs if name is not None and name in graph.tensors)
    if not any(dim in symbols for shape in read for dim in shape or ()):
        return False
    made = (graph.tensors[name].shape for name in node.outputs if name in graph.tensors)
    return any(shape is not None and all(isinstance(dim, int) for dim in shape) for shape in made)


def _elements(graph: Graph, symbols: Collection[str], batch: Arrays) -> int:
    """At most how many elements all tensors have for one sample: an unknown size is taken for the largest input's."""
    largest = max((size for array in batch.values() for size in array.shape), default=1)

    def size(dim: int | str | None) -> int:
        return dim if isinstance(dim, int) else 1 if dim in symbols else largest

    shapes = [info.shape for info in graph.tensors.values()]
    return sum(prod(map(size, shape)) if shape is not None else _SMALL for shape in shapes)
