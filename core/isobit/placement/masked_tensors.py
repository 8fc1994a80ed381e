"""Signals with an additive mask on them: a grid that reaches to -1e9 would have no levels left for the rest."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from isobit.graph.graph import Graph, Node
from isobit.graph.ops import VALUE_PRESERVING, operand

#: Constants this large are masks (attention's -1e9, -inf), not data.
_MASK_MAGNITUDE = 1e8

#: In front of a Softmax far smaller ones are: Swin adds -100, GPT-2 and BERT -10,000, and exp(-50) is nothing.
_SOFTMAX_MAGNITUDE = 50.0

_MASKING = frozenset({"Add", "Sub", "Where", "Min", "Max"})
#: Of these, those that put a constant on scores; a bound that they do not reach is none.
_PUTTING = frozenset({"Add", "Sub", "Where"})
#: What stands between a mask and its Softmax.
_TO_SOFTMAX = VALUE_PRESERVING | _MASKING | {"Mul", "Div", "Cast", "Clip"}


def masked_tensors(graph: Graph, signal: Collection[str]) -> set[str]:
    """The tensors of `graph` that a mask was put on, of those that carry the signal."""
    masked: set[str] = set()
    waves, scores = _waves(graph), masked_scores(graph)
    for node in graph.nodes:
        floats = [
            n for n in node.inputs if n in graph.tensors and n is not None and graph.tensors[n].dtype == "float32"
        ]
        added = any(name not in signal and name not in waves for name in floats) or has_mask_constant(graph, node)
        carried = node.op in VALUE_PRESERVING | _MASKING and any(name in masked for name in floats)
        scaled = node.op == "Mul" and has_mask_constant(graph, node)  # a mask of ones and zeros times -1e9
        masks = scaled or _fills_with_mask(node) or (node.op in _MASKING and added) or node.name in scores
        if carried or (masks and node.outputs[0] in signal):
            masked.update(node.outputs)
    return masked


def _waves(graph: Graph) -> set[str]:
    """Sines and cosines, moved and joined: positions computed from a length, of which none is larger than 1."""
    waves: set[str] = set()
    for node in graph.nodes:
        sources = [name for name in node.inputs if name is not None and name not in graph.weights]
        moved = node.op in VALUE_PRESERVING and bool(sources) and waves.issuperset(sources)
        masks = has_mask_constant(graph, node) or _fills_with_mask(node)
        if node.op in ("Sin", "Cos") or (moved and not masks):
            waves.update(node.outputs)
    return waves


def masked_scores(graph: Graph) -> set[str]:
    """Nodes that put a constant on what a Softmax reads, so large that what it covers is nothing there."""
    found: set[str] = set()
    visited: set[str] = set()
    waiting = [node.inputs[0] for node in graph.nodes if node.op in ("Softmax", "LogSoftmax")]
    while waiting:
        name = waiting.pop()
        producer = graph.producer(name) if name is not None else None
        if producer is None or producer.name in visited or producer.op not in _TO_SOFTMAX:
            continue
        visited.add(producer.name)
        waiting.extend(producer.inputs)
        if producer.op in _PUTTING and has_mask_constant(graph, producer, _SOFTMAX_MAGNITUDE):
            found.add(producer.name)
    return found


def has_mask_constant(graph: Graph, node: Node, least: float = _MASK_MAGNITUDE) -> bool:
    """Whether a node reads a constant as large as a mask's, beside its weights."""
    unnamed = (name for i, name in enumerate(node.inputs) if operand(node.op, i) is None)
    constants = (graph.weights[name] for name in unnamed if name in graph.weights and name)
    return any(info.is_float and info.magnitude is not None and _is_mask(info.magnitude, least) for info in constants)


def _fills_with_mask(node: Node) -> bool:
    """Whether a node moves values and puts masks between or beside them."""
    return node.op == "Pad" and _is_mask(node.attributes.get("value", 0))


def _is_mask(number: Any, least: float = _MASK_MAGNITUDE) -> bool:
    """Not below the limit, instead of at or above it, so that NaN counts as a mask too."""
    return bool(np.size(number)) and not bool(np.all(np.abs(number) < least))
