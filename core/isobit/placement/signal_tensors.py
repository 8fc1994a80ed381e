"""Which tensors carry the network's signal, and which are masks, indices and shape arithmetic."""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakKeyDictionary

from isobit.graph.graph import Graph
from isobit.graph.ops import SHAPE_SOURCES, VALUE_PRESERVING, operand

#: Of graphs that are there: plans, coverage and reports of one graph ask for it one after the other.
_KNOWN: WeakKeyDictionary[Graph, frozenset[str]] = WeakKeyDictionary()


def signal_tensors(graph: Graph) -> frozenset[str]:
    """Tensors that carry the network's signal: they depend on floats, on 8-bit pixels, or on a table of floats.

    A table is read by indices (Gather), or projected as a whole by a layer (DeBERTa's relative positions). What
    integers and booleans become is signal where a weight meets it (audio as int16, one-hot codes, planes of a board).
    """
    known = _KNOWN.get(graph)
    if known is None:
        known = _KNOWN[graph] = frozenset(_found(graph))
    return known


def _found(graph: Graph) -> set[str]:
    start = {name for name in graph.inputs if graph.is_float(name) or graph.tensors[name].dtype in ("uint8", "int8")}
    signal = _reached(graph, start)
    met = _met_by_weights(graph, signal)
    return _reached(graph, start | met) if met else signal


def _reached(graph: Graph, start: set[str]) -> set[str]:
    """What depends on `start`, or on a table of floats."""
    signal = set(start)
    constant = {name for name in graph.weights if graph.is_float(name)}
    for node in graph.nodes:
        read = [name for name in node.inputs if name is not None]
        looked_up = node.op == "Gather" and node.input(0) in constant and node.input(0) in graph.weights
        projected = node.op == "Linear" and node.input(0) in constant
        if projected:
            signal.add(read[0])
        if looked_up or any(name in signal for name in read):
            signal.update(node.outputs)
        elif read and all(name in constant for name in read):
            constant.update(node.outputs)
    return signal


def _met_by_weights(graph: Graph, signal: set[str]) -> set[str]:
    """Floats made of integer inputs that a weighted operation reads, directly or behind other operations.

    The way back ends at the first float and at signal, so that a mask made of the same integers stays a mask, and so
    does one that is added to signal. It ends at a sine or cosine too: positions and phases must stay exact.
    """
    dependent = value_dependent(graph, graph.inputs)
    met: set[str] = set()
    visited: set[str] = set()
    waiting = [node.inputs[0] for node in graph.nodes if _has_weight(graph, node.inputs, node.op)]
    while waiting:
        name = waiting.pop()
        if name is None or name in visited or name not in dependent or not graph.is_float(name):
            continue
        visited.add(name)
        producer = graph.producer(name)
        if name not in signal:
            met.add(name)
        elif producer is None or producer.op not in VALUE_PRESERVING:
            continue
        if producer is not None and producer.op not in ("Sin", "Cos"):
            waiting.extend(producer.inputs)
    return met


def value_dependent(graph: Graph, inputs: Iterable[str]) -> set[str]:
    """Tensors whose values follow from those of these inputs, not from their shapes alone."""
    dependent = set(inputs)
    for node in graph.nodes:
        if node.op not in SHAPE_SOURCES and any(name in dependent for name in node.inputs):
            dependent.update(node.outputs)
    return dependent


def _has_weight(graph: Graph, inputs: tuple[str | None, ...], op: str) -> bool:
    """Whether an operation reads a float constant in the place of a weight, other than positions times frequencies."""
    for index, name in enumerate(inputs):
        described = operand(op, index)
        if name is None or name not in graph.weights or described is None:
            continue
        if described.role in ("weight", "recurrent_weight"):
            return op != "Linear" or graph.weights[name].shape[1] != 1
    return False
