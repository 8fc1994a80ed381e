"""What computes a tensor and can take factors of its channels into constants: norms, layers, and arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from isobit.edits.draft import Draft
from isobit.edits.edit import SetWeights, Unshare
from isobit.graph.graph import Graph, Node
from isobit.techniques.layers.layer_pairs import HOMOGENEOUS
from isobit.techniques.layers.weighted_layer import (
    LAYERS,
    Floats,
    bias_obstacle,
    bias_of,
    by_output,
    channel_axis,
    set_bias,
    weight_obstacle,
)

#: Norms that end with a scale and a shift of each channel, their constants 1 and 2.
NORMS = frozenset(
    {"LayerNormalization", "RMSNormalization", "BatchNormalization", "InstanceNormalization", "GroupNormalization"}
)

#: Those by a constant are divided by a positive factor when both operands are.
_TERMS = frozenset({"Add", "Sub", "Max", "Min"})


@dataclass(frozen=True, eq=False)
class Carrier:
    """Constants that can be divided so that a tensor is, channel by channel.

    `terms` are sums with and bounds of constants on the way up, `source` ends it: a norm, a layer, a Mul or Div by
    constants.
    `between` are the tensors on the way, which are divided too.
    """

    source: Node
    terms: tuple[Node, ...] = ()
    between: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The source, in words."""
        return self.source.name


def find_carrier(
    graph: Graph,
    tensor: str,
    is_free: Callable[[Node, str], bool] = lambda *_: True,
) -> Carrier | None:
    """What computes `tensor` and can carry factors, through operations that let them pass.

    Nobody else may read what lies between. `is_free` says whether a constant of a node may have other sizes by channel:
    not where one grid is for all of it.
    """
    axis = graph.tensors[tensor].channel_axis
    terms: list[Node] = []
    between: list[str] = []
    while axis is not None:
        node = graph.producer(tensor)
        if node is None or graph.tensors[tensor].rank is None:
            return None
        if node.op in HOMOGENEOUS:
            onward = node.inputs[0] or ""
        elif _is_source(graph, node, axis, is_free):
            return Carrier(node, tuple(terms), tuple(between))
        elif node.op in _TERMS and _constant_index(graph, node, is_free) is not None:
            terms.append(node)
            onward = next(name for name in node.inputs if name in graph.tensors and name is not None)
        else:
            return None
        if graph.sole_reader(onward) is None or graph.tensors[onward].channel_axis != axis:
            return None
        between.append(onward)
        tensor = onward
    return None


def divide(draft: Draft, carrier: Carrier, factors: Floats, shift: Floats | float = 0.0) -> None:
    """Make the carried tensor ``(x - shift) / factors``; a shift only where the carrier is one norm or layer."""
    for node in carrier.terms:
        index = _constant_index(draft.graph, draft.graph.node(node.name))
        _change_constant(draft, node.name, index or 0, _laid_out(draft.graph, node, factors))
    source = draft.graph.node(carrier.source.name)
    if source.op in LAYERS:
        weight = source.inputs[1] or ""
        value = draft.value(weight).astype(np.float64)
        draft.apply(SetWeights({weight: value / by_output(value, factors)}))
        if source.input(2) is not None or np.any(shift):
            set_bias(draft, source, (bias_of(draft, source, factors.size) - shift) / factors)
    elif source.op in NORMS:
        _change_constant(draft, source.name, 1, factors)
        _change_constant(draft, source.name, 2, factors, shift)
    else:
        laid_out = _laid_out(draft.graph, source, factors)
        index = _constant_index(draft.graph, source)
        _change_constant(draft, source.name, index or 0, 1 / laid_out if source.op == "Div" else laid_out)


def _is_source(graph: Graph, node: Node, axis: int, is_free: Callable[[Node, str], bool]) -> bool:
    if node.op in LAYERS:
        weight = node.inputs[1] or ""
        obstacle = weight_obstacle(graph, node) or bias_obstacle(graph, node)
        return not obstacle and channel_axis(graph, node) == axis and is_free(node, weight)
    if node.op in NORMS:
        constants = [name for name in node.inputs[1:3] if name is not None]
        channels = (graph.tensors[node.outputs[0]].shape or ())[axis]
        known = all(name in graph.weights and graph.weights[name].shape == (channels,) for name in constants)
        return bool(constants) and known and _norm_axis(graph, node) == axis
    if node.op == "Div" and node.input(1) not in graph.weights:
        return False
    return node.op in ("Mul", "Div") and _constant_index(graph, node, is_free) is not None


def _norm_axis(graph: Graph, node: Node) -> int:
    """The axis of the constants of a norm; -1 where they have several."""
    if node.op not in ("LayerNormalization", "RMSNormalization"):
        return 1
    last = (graph.tensors[node.outputs[0]].rank or 0) - 1
    return last if node.attributes.get("axis", -1) in (-1, last) else -1


def _constant_index(graph: Graph, node: Node, is_free: Callable[[Node, str], bool] = lambda *_: True) -> int | None:
    """The index of the one constant of an elementwise node, where it can be changed for this node alone."""
    if len(node.inputs) != 2 or sum(name in graph.tensors for name in node.inputs) != 1:
        return None
    index = 0 if node.inputs[0] in graph.weights else 1
    name = node.inputs[index] or ""
    info = graph.weights.get(name)
    if info is None or info.dtype != "float32" or not is_free(node, name):
        return None
    return index if index == 1 or len(graph.source_readers(name)) == 1 else None


def _laid_out(graph: Graph, node: Node, factors: Floats) -> Floats:
    """Factors that broadcast against what a node computes."""
    info = graph.tensors[node.outputs[0]]
    return by_axis(factors, (info.rank or 0) - 1 - (info.channel_axis or 0))


def by_axis(factors: Floats, behind: int) -> Floats:
    """One value a channel, with so many axes behind the channels'."""
    return factors.reshape(-1, *(1,) * behind)


def _change_constant(draft: Draft, node: str, index: int, factors: Floats, shift: Floats | float = 0.0) -> None:
    name = draft.graph.node(node).input(index)
    if name is None:
        return
    if len(draft.graph.source_readers(name)) > 1:
        draft.apply(Unshare(name, node))
        name = draft.graph.node(node).inputs[index] or ""
    draft.apply(SetWeights({name: (draft.value(name).astype(np.float64) - shift) / factors}))
