"""Tensors whose values must stay exact, by what becomes of them: phases, indices, denominators, squares before a root.

A grid has steps of one size. The argument of a sine needs an absolute error far below one radian however large it is;
that of a root or a logarithm, and a denominator, need a relative one however small they are. So these stay in float,
with all that is computed on the way to them by moves and elementwise arithmetic. The way back ends at a
layer, whose weight stays an integer: it hands on its result in float.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from isobit.graph.graph import Graph, Node, Use
from isobit.graph.ops import VALUE_PRESERVING, WEIGHTED
from isobit.placement.signal_tensors import value_dependent
from isobit.placement.size_tensors import COMPARISONS, size_tensors

#: Arithmetic that the way back passes: a step of its operands becomes a step of its result.
_AFFINE = frozenset("Add Sub Mul Div Neg Sum Mod Floor Ceil Round Clip Max Min Cast AffineGrid".split())
_REDUCTIONS = frozenset({"ReduceSum", "ReduceMean", "AveragePool", "GlobalAveragePool"})
#: After which a filtered signal is still one: without its mean, masked, with its edges mirrored.
_LINEAR = _REDUCTIONS | {
    *("Add", "Sub", "Mul", "Div", "Neg", "Sum", "Mean", "Cast", "Where", "CumSum", "ScatterElements", "ScatterND")
}
#: Moves of it; the largest of several values is no linear function of them.
_MOVES = VALUE_PRESERVING - {"MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin"}
#: What squares and magnitudes remain: sums, means and roots of them, scaled and bounded.
_KEEPS_SQUARES = _REDUCTIONS | {"Add", "Sum", "Sqrt", "Pow", "Mul", "Div", "Clip", "Max", "Min", "Relu", "Cast"}
_POSITIVE = _AFFINE | _REDUCTIONS | {"Relu", "Abs", "ReduceL1", "ReduceSumSquare"}
#: What whole numbers are made of: durations are rounded, added up, and become a length.
_COUNTED = _AFFINE | {"ReduceSum", "ReduceMax", "ReduceMin", "CumSum"}
_OF_ALL = _AFFINE | {"Concat"}
_LOGARITHMS = frozenset({"Log", "ReduceLogSum"})
_ROOTS = _LOGARITHMS | {"Sqrt"}
_PERIODIC = frozenset({"Sin", "Cos", "Tan"})
#: Where an operand says which parts are read or written.
_INDEXED = {"Gather": 1, "GatherElements": 1, "GatherND": 1, "ScatterND": 1, "ScatterElements": 1}
#: Where an operand says at which places, between the pixels, an image is read: grids, offsets, boxes.
_PLACED = {"GridSample": 1, "DeformConv": 2, "RoiAlign": 1, "MaxRoiPool": 1}
_INDICES = ("int32", "int64", "uint32", "uint64")


@dataclass(frozen=True)
class _Way:
    """How far a way back goes: the arithmetic that it `passes`, and what it looks for behind a layer.

    Of `positive` values squares and spectra count there, over `decades` where a logarithm is taken: more than 16 bits
    have on a grid of equal steps. Of `places` the coordinates that a layer maps to others do.
    """

    passes: frozenset[str]
    positive: bool = False
    decades: bool = False
    places: bool = False


_PHASE, _COUNT, _PLACE = _Way(_AFFINE), _Way(_COUNTED), _Way(_AFFINE, places=True)
#: What a divisor is made of beside the sum itself: an epsilon, a bound, a factor.
_DIVISOR = _Way(frozenset({"Add", "Max", "Clip", "Mul", "Cast"}))
_ROOT, _LOGARITHM = _Way(_POSITIVE, positive=True), _Way(_POSITIVE, positive=True, decades=True)


@dataclass(frozen=True)
class ExactTensors:
    """What a graph needs exact.

    `reasons` says why, by tensor. `uses` are the readers in float; others may read rounded values. What layers read of
    `wide` tensors needs 16 bits, and so does the weight of a layer of `wide_weights`; both with the reason. The layers
    on the way to a size are `sized_layers`, the last first.
    """

    reasons: Mapping[str, str] = field(default_factory=dict)
    uses: frozenset[Use] = frozenset()
    wide: Mapping[str, str] = field(default_factory=dict)
    wide_weights: Mapping[str, str] = field(default_factory=dict)
    sized_layers: Mapping[str, str] = field(default_factory=dict)


def exact_tensors(graph: Graph, signal: Collection[str], is_overridden: Callable[[str], bool]) -> ExactTensors:
    """The tensors of `graph` that must stay exact; a tensor that the user gave a format ends the way back."""
    search = _Search(graph, signal, is_overridden)
    for node in sorted(graph.nodes, key=lambda node: node.op not in _LOGARITHMS):  # these ask most of what they share
        search.ask(node)
    search.decide_layers()
    uses = frozenset(search.uses)
    return ExactTensors(search.reasons, uses, search.wide, search.wide_weights, search.sizes.layers)


class _Search:
    def __init__(self, graph: Graph, signal: Collection[str], is_overridden: Callable[[str], bool]) -> None:
        self.graph, self.signal, self.is_overridden = graph, signal, is_overridden
        self.positions, self.squares = _positions(graph), _squares(graph)
        self.counted, self.searched, self.filtered = _counted(graph), _searched(graph), _filtered(graph, signal)
        self.layers: set[str] = set()  # results of layers in which a phase or an index was found
        self.mapped: set[str] = set()  # layers whose results are places in an image
        self.sizes = size_tensors(graph, signal, is_overridden)
        self.reasons: dict[str, str] = dict(self.sizes.reasons)
        self.uses: set[Use] = set(self.sizes.uses)
        self.wide: dict[str, str] = {}
        self.wide_weights: dict[str, str] = dict(self.sizes.layers)

    def ask(self, node: Node) -> None:
        """What one node needs exact of what it reads."""
        if node.op in _PERIODIC:
            self._walk(node, 0, f"{node.op} {node.name} reads it as a phase", _PHASE)
        elif node.op in _ROOTS or _is_power(self.graph, node, lambda exponent: 0 < abs(exponent) < 1):
            what, way = ("logarithm", _LOGARITHM) if node.op in _LOGARITHMS else ("root", _ROOT)
            self._walk(node, 0, f"{node.op} {node.name} takes its {what}, for which small values count", way)
        elif node.op == "ReduceL2":
            for use in self._squared(node):
                reason = f"{node.op} {node.name} takes the root of its squares, for which small values count"
                self._walk(node, use.index, reason, _ROOT)
        elif node.op in ("Div", "Reciprocal"):
            index = 1 if node.op == "Div" else 0
            self._walk(node, index, f"{node.op} {node.name} divides by it, and small values count", _DIVISOR)
        elif node.op == "Cast" and self.graph.tensors[node.outputs[0]].dtype in _INDICES:
            self._walk(node, 0, f"{node.op} {node.name} makes whole numbers of it", _COUNT)
        elif node.op == "OneHot":
            self._walk(node, 0, f"{node.op} {node.name} reads it as an index", _PHASE)
        elif node.op in _PLACED:
            self._walk(node, _PLACED[node.op], f"{node.op} {node.name} reads it as positions", _PLACE)
        elif node.op in COMPARISONS:
            of_counted = not self.counted.isdisjoint(node.inputs)
            for index in (0, 1):
                if of_counted or node.input(index) in self.positions:
                    self._walk(node, index, f"{node.op} {node.name} compares it as a position", _COUNT)
                elif node.name in self.searched and all(name in self.signal for name in node.inputs):
                    self._walk(node, index, f"{node.op} {node.name} compares it for an index", _COUNT)
        elif node.op == "Range":
            for index in (0, 1, 2):
                self._walk(node, index, f"Range {node.name} counts with it", _COUNT)

    def decide_layers(self) -> None:
        """Decide about the layers of whose results phases are made.

        A result that others read as well keeps its grid: it is no phase. A layer that makes phases of positions
        (Fourier features), or places in an image of coordinates (spatial transformers), needs both in 16 bits.
        """
        for name in self.layers:
            uses = self.graph.uses(name)
            if not self.uses.issuperset(uses):
                del self.reasons[name]
                self.uses.difference_update(uses)
                continue
            layer = self.graph.producer(name)
            read = self._read_by(layer) if layer is not None else []
            if layer is None or len(read) != 1:
                continue
            source = layer.inputs[read[0]] or ""
            of_coordinates = layer.name in self.mapped and _maps_coordinates(self.graph, layer)
            if (source in self.positions or of_coordinates) and not self.is_overridden(source):
                self.wide[source] = self.wide_weights[layer.name] = self.reasons[name]

    def _walk(self, reader: Node, index: int, reason: str, way: _Way) -> None:
        """Mark what a reader needs exact, and what that is computed from."""
        waiting = [Use(reader, index)]
        while waiting:
            use = waiting.pop()
            name = use.node.input(use.index)
            if name is None or name not in self.graph.tensors or name not in self.signal:
                continue
            if not self.graph.is_float(name) or self.is_overridden(name):
                continue
            self.uses.add(use)
            if name in self.reasons:
                continue
            self.reasons[name] = reason
            producer = self.graph.producer(name)
            if producer is None:
                continue
            if producer.op in WEIGHTED:
                self._end_at_layer(producer, reason, way)
            elif _is_square(self.graph, producer):
                waiting += self._squared(producer)
            elif producer.op in way.passes | VALUE_PRESERVING:
                waiting += self._operands(producer, way)

    def _operands(self, node: Node, way: _Way) -> list[Use]:
        """Where the way back goes on: a sum of two signals is where a phase begins, one of squares is passed."""
        uses = [Use(node, i) for i in (range(len(node.inputs)) if node.op in _OF_ALL else (0,))]
        signals = [use for use in uses if node.inputs[use.index] in self.signal]
        if way in (_PHASE, _COUNT, _PLACE) and len(signals) > 1 and node.op != "Concat":
            return [use for use in signals if node.inputs[use.index] in self.positions]
        return signals

    def _end_at_layer(self, layer: Node, reason: str, way: _Way) -> None:
        """Behind a layer, whose weight stays an integer, exact are squares that it adds up, and spectra.

        16 bits do for a root; a logarithm needs them in float.
        """
        if way in (_PHASE, _COUNT, _PLACE):
            self.layers.add(layer.outputs[0])
            if way.places:
                self.mapped.add(layer.name)
        if not way.positive:
            return
        sources = {index: layer.inputs[index] or "" for index in self._read_by(layer)}
        added = [index for index, name in sources.items() if name in self.squares and not self.is_overridden(name)]
        for index in added:
            self._walk(layer, index, reason, way)
            if not way.decades:
                self.wide[sources[index]] = reason
                self.uses.discard(Use(layer, index))
        if not added and layer.outputs[0] in self.filtered:
            self._widen(layer, reason)

    def _read_by(self, layer: Node) -> list[int]:
        """The operands of a layer that are no constants: a matrix of weights may stand on either side of a product."""
        return [index for index in (0, 1) if layer.input(index) in self.signal]

    def _squared(self, square: Node) -> list[Use]:
        """What is squared and must be exact too: a filtered input, whose quiet parts count as much as their squares.

        And means that are squared for a variance, E[x^2] - E[x]^2, which is the difference of two large numbers.
        """
        name = square.inputs[0] or ""
        producer = self.graph.producer(name)
        of_magnitude = producer is not None and producer.op == "Abs" and producer.inputs[0] in self.filtered
        of_variance = producer is not None and producer.op in _REDUCTIONS and _is_subtracted(self.graph, square)
        if not of_magnitude and not of_variance and name not in self.filtered:
            return []
        return [Use(square, index) for index, other in enumerate(square.inputs) if other == name]

    def _widen(self, layer: Node, reason: str) -> None:
        """Give the filters between the input and a spectrum, and what they read, 16 bits."""
        self.wide_weights[layer.name] = reason
        waiting = [layer.inputs[index] for index in self._read_by(layer)]
        while waiting:
            name = waiting.pop()
            if name is None or name in self.wide or name not in self.filtered or self.is_overridden(name):
                continue
            self.wide[name] = reason
            producer = self.graph.producer(name)
            if producer is not None and producer.op in WEIGHTED:
                self.wide_weights[producer.name] = reason
            waiting += producer.inputs if producer is not None else ()


def _maps_coordinates(graph: Graph, layer: Node) -> bool:
    """Whether a product gives places coordinate by coordinate: x, y and z are rows of its own, not its features.

    Its constant then holds the coordinates of a grid (spatial transformers) or what they bend by (thin-plate splines).
    """
    shape = graph.tensors[layer.outputs[0]].shape or ()
    return layer.op in ("Linear", "MatMul") and len(shape) > 2 and shape[-2] in (2, 3)


def _filtered(graph: Graph, signal: Collection[str]) -> set[str]:
    """The inputs of a network and linear functions of them: moved, scaled, masked, and filtered by constant weights.

    A mask of lengths and sizes counts as a constant; what follows from values of the signal does not.
    """
    filtered = set(graph.inputs)
    begins = [node for node in graph.nodes if not any(name in signal for name in node.inputs)]  # tables, codes
    begun = {name for node in begins for name in node.outputs if name in signal}
    varying = value_dependent(graph, begun.union(name for name in graph.inputs if name in signal))
    for node in graph.nodes:
        sources = [name for name in node.inputs if name is not None and (name in varying or name in filtered)]
        is_linear = node.op in WEIGHTED | _LINEAR | _MOVES
        if node.op in WEIGHTED | {"Mul"}:
            is_linear = len(sources) == 1
        elif node.op == "Div":
            is_linear = sources == [node.inputs[0]]
        elif node.op in _MOVES - {"Concat"}:
            is_linear = sources[:1] == [node.inputs[0]]  # and not a table that is looked up by an input
        if is_linear and sources and filtered.issuperset(sources):
            filtered.update(node.outputs)
    return filtered


def _positions(graph: Graph) -> set[str]:
    """Tensors made of inputs of the network and of constants by moves and arithmetic alone."""
    positions = set(graph.inputs)
    for node in graph.nodes:
        sources = [name for name in node.inputs if name is not None and name not in graph.weights]
        if sources and node.op in _AFFINE | VALUE_PRESERVING and positions.issuperset(sources):
            positions.update(node.outputs)
    return positions


def _counted(graph: Graph) -> set[str]:
    """What a Range counts, and what moves and arithmetic with constants make of it."""
    counted: set[str] = set()
    for node in graph.nodes:
        sources = [name for name in node.inputs if name is not None and name not in graph.weights]
        made = sources and node.op in _AFFINE | VALUE_PRESERVING and counted.issuperset(sources)
        if node.op == "Range" or made:
            counted.update(node.outputs)
    return counted


def _searched(graph: Graph) -> set[str]:
    """Comparisons that are counted, or looked through, for an index: which of several bins a value lies in."""
    comparisons: set[str] = set()
    visited: set[str] = set()
    waiting = [node.input(_INDEXED[node.op]) for node in graph.nodes if node.op in _INDEXED]
    while waiting:
        name = waiting.pop()
        if name is None or name in visited or name not in graph.tensors or graph.is_float(name):
            continue
        visited.add(name)
        producer = graph.producer(name)
        if producer is not None and producer.op in COMPARISONS:
            comparisons.add(producer.name)
        elif producer is not None:
            waiting.extend(producer.inputs)
    return comparisons


def _squares(graph: Graph) -> set[str]:
    """Squares and magnitudes, sums of them, their roots and powers, also scaled and bounded, and what moves these."""
    squares: set[str] = set()
    unscaled: dict[str | None, str | None] = {}  # what a tensor is a multiple of, before it met constants
    for node in graph.nodes:
        read = node.inputs[:1] if node.op in VALUE_PRESERVING - {"Concat"} else node.inputs
        signals = [name for name in read if name is not None and name not in graph.weights]
        is_kept = node.op in VALUE_PRESERVING | _KEEPS_SQUARES and squares.issuperset(signals)
        is_scaled = node.op == "Mul" and len({unscaled.get(name, name) for name in node.inputs}) == 1
        if len(signals) == 1 and (node.op in ("Mul", "Neg") or (node.op == "Div" and node.inputs[0] == signals[0])):
            unscaled[node.outputs[0]] = unscaled.get(signals[0], signals[0])
        if (is_kept and signals) or is_scaled or node.op in ("Abs", "ReduceL1") or _is_square(graph, node):
            squares.update(node.outputs)
    return squares


def _is_subtracted(graph: Graph, square: Node) -> bool:
    """Whether a square is subtracted from something, also scaled."""
    waiting, visited = [square.outputs[0]], set[str]()
    while waiting:
        name = waiting.pop()
        if name in visited:
            continue
        visited.add(name)
        for use in graph.uses(name):
            if use.node.op in ("Sub", "Neg"):
                return True
            beside = [other for other in use.node.inputs if other != name]
            if use.node.op in VALUE_PRESERVING or (use.node.op in ("Mul", "Div") and graph.weights.keys() >= {*beside}):
                waiting += use.node.outputs
    return False


def _is_square(graph: Graph, node: Node) -> bool:
    if node.op == "Mul":
        return node.inputs[0] == node.inputs[1]
    return node.op in ("ReduceSumSquare", "ReduceL2") or _is_power(graph, node, lambda exponent: exponent == 2)


def _is_power(graph: Graph, node: Node, has: Callable[[float], bool]) -> bool:
    exponent = graph.value(node.input(1)) if node.op == "Pow" else None
    return exponent is not None and exponent.size > 0 and all(has(float(value)) for value in exponent.ravel())
