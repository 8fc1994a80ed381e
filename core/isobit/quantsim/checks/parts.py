"""How near the simulator is to the float model in each part of an output that is put together: boxes beside scores.

Over the whole output a large part hides that a small one is lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from isobit.graph.graph import Graph
from isobit.quantsim.checks.quality import Outputs, decibels

Pair = tuple[NDArray[Any], NDArray[Any]]

_MOST = 12  # parts of one output, the worst of them


@dataclass(frozen=True)
class Part:
    """The slice of an output that one tensor makes."""

    tensor: str
    axis: int
    start: int
    stop: int


def part_sqnr(graph: Graph, exact: Outputs, other: Outputs) -> dict[str, float]:
    """Decibels of each part of each float output that a Concat makes, as ``output[part]``."""
    pairs = pairs_of_parts(graph, exact, other)
    return worst_parts({name: {label: decibels(*pair) for label, pair in parts.items()} for name, parts in pairs})


def worst_parts(ratios: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The worst dozen of the parts of each output, the worst first."""
    found: dict[str, float] = {}
    for parts in ratios.values():
        found |= dict(sorted(parts.items(), key=lambda item: item[1])[:_MOST])
    return found


def pairs_of_parts(graph: Graph, exact: Outputs, other: Outputs) -> Iterator[tuple[str, dict[str, Pair]]]:
    """The parts of each float output that a Concat makes, in both models, by ``output[part]``."""
    for name, values in exact.items():
        tensor = graph.outputs.get(name)
        if tensor is None or values.dtype.kind != "f" or name not in other or other[name].shape != values.shape:
            continue
        pairs = {}
        for part in parts_of(graph, tensor, values.shape):
            index = (slice(None),) * part.axis + (slice(part.start, part.stop),)
            if values[index].size:
                pairs[f"{name}[{part.tensor}]"] = (values[index], other[name][index])
        yield name, pairs


def parts_of(graph: Graph, tensor: str, shape: tuple[int, ...]) -> list[Part]:
    """The parts of a tensor of this shape, in their order; none where it is no Concat, or sizes are not known."""
    axes = list(range(len(shape)))  # of the tensor that is looked at: where each of its axes is in the output
    producer = graph.producer(tensor)
    while producer is not None and producer.op in ("Transpose", "Identity"):
        if producer.op == "Transpose":
            perm = tuple(producer.attributes.get("perm", ()))
            if len(perm) != len(axes):
                return []
            axes = [axes[perm.index(axis)] for axis in range(len(perm))]
        producer = graph.producer(producer.inputs[0] or "")
    if producer is None or producer.op != "Concat":
        return []
    axis = int(producer.attributes["axis"]) % len(shape)
    names = [name for name in producer.inputs if name is not None]
    sizes = [_size(graph, name, axis) for name in names]
    if sizes.count(None) > 1:
        return []
    rest = shape[axes[axis]] - sum(size for size in sizes if size is not None)
    return list(_slices(names, [rest if size is None else size for size in sizes], axes[axis]))


def _slices(names: list[str], sizes: list[int], axis: int) -> Iterator[Part]:
    start = 0
    for name, size in zip(names, sizes, strict=True):
        yield Part(name, axis, start, start + size)
        start += size


def _size(graph: Graph, name: str, axis: int) -> int | None:
    info = graph.tensors.get(name) or graph.weights[name]
    size = info.shape[axis] if info.shape is not None else None
    return size if isinstance(size, int) else None
