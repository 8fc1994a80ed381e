"""Tensors that decide a size on which layers run: durations that are rounded and add up to a length.

Where a grid moves one duration, all that follows it moves too, and two runs of the same network give outputs of two
shapes. So the whole way to such a size is exact, layers included: tensors in float, weights in 16 bits. A size behind
which no layer runs (a box that is cut out of a picture) is not worth that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from isobit.graph.graph import Graph, Node, Use
from isobit.graph.ops import RECURRENT, SHAPE_SOURCES, WEIGHTED

#: Operands that say how large a result is, or which part of a tensor is left.
SIZES: Mapping[str, tuple[int, ...]] = {
    "Range": (0, 1, 2),
    "ConstantOfShape": (0,),
    "Slice": (1, 2, 3, 4),
    "Resize": (2, 3),
    **dict.fromkeys(("Reshape", "Expand", "Tile", "Pad", "TopK", "OneHot", "Split"), (1,)),
}
COMPARISONS = frozenset({"Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"})
#: Where the way back ends: sizes follow from no values, and what is compared or chosen (detections) is not rounded.
_ENDS = SHAPE_SOURCES | COMPARISONS | {"ArgMax", "ArgMin", "TopK", "NonZero", "NonMaxSuppression"}
_LAYERS = WEIGHTED | RECURRENT


@dataclass(frozen=True)
class SizeTensors:
    """Why tensors must be exact, by tensor; the readers that need them so; and why layers need exact weights."""

    reasons: Mapping[str, str]
    uses: Collection[Use]
    layers: Mapping[str, str]


def size_tensors(graph: Graph, signal: Collection[str], is_overridden: Callable[[str], bool]) -> SizeTensors:
    """The float tensors from which sizes follow by rounding; one that the user gave a format ends the way back."""
    reasons: dict[str, str] = {}
    uses: set[Use] = set()
    layers: dict[str, str] = {}
    for use, reason in _rounded(graph, signal):
        waiting = [use]
        while waiting:
            use = waiting.pop()
            name = use.node.input(use.index)
            if name is None or name not in signal or name not in graph.tensors or is_overridden(name):
                continue
            if graph.is_float(name):
                uses.add(use)
            if name in reasons:
                continue
            reasons[name] = reason
            producer = graph.producer(name)
            waiting += _operands(producer)
            if producer is not None and (producer.op in _LAYERS or producer.input(0) in graph.weights):
                layers[producer.name] = reason
    return SizeTensors({name: why for name, why in reasons.items() if graph.is_float(name)}, uses, layers)


def _rounded(graph: Graph, signal: Collection[str]) -> Iterable[tuple[Use, str]]:
    """Where floats become whole numbers of which sizes are made, or are sizes as they are, and why each matters."""
    run_on = _run_on(graph)
    for node in graph.nodes:
        if node.op not in SIZES or run_on.isdisjoint(node.outputs):
            continue
        reason = f"{node.op} {node.name} makes a size of it"
        visited: set[str] = set()
        waiting = [Use(node, index) for index in SIZES[node.op] if index < len(node.inputs)]
        while waiting:
            use = waiting.pop()
            name = use.node.input(use.index)
            if name is None or name in visited or name not in graph.tensors or name not in signal:
                continue
            visited.add(name)
            if graph.is_float(name):
                yield use, reason
            else:
                waiting += _operands(graph.producer(name))


def _operands(producer: Node | None) -> list[Use]:
    if producer is None or producer.op in _ENDS:
        return []
    return [Use(producer, index) for index in range(len(producer.inputs))]


def _run_on(graph: Graph) -> set[str]:
    """Tensors behind which a layer runs."""
    found: set[str] = set()
    for node in reversed(graph.nodes):
        if node.op in _LAYERS or not found.isdisjoint(node.outputs):
            found.update(name for name in node.inputs if name is not None)
    return found
