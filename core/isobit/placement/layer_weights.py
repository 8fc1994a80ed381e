"""Which constants layers read as weights; the others are masks, positions, norms and what is added."""

from __future__ import annotations

from isobit.graph.graph import Graph, Use
from isobit.graph.ops import BODIES, RECURRENT, VARIABLES, WEIGHTED
from isobit.placement.constants import in_body, is_matrix
from isobit.placement.signal_tensors import signal_tensors

_ROLES = ("weight", "recurrent_weight")

#: Layers that run in float on every target, by the operand that is their weight.
FLOAT_LAYERS = {"DeformConv": 1}


def layer_weights(graph: Graph) -> dict[str, list[Use]]:
    """Constants of floats that layers multiply with the network's signal, and where they do.

    The layers are Conv, ConvTranspose, Linear, MatMul, the recurrent ones, DeformConv, and those that a backend keeps
    whole.
    Matrices that the bodies of an If, a Loop or a Scan read count too. What is multiplied with positions alone (rotary
    embeddings) does not: phases stay in float by rule.
    """
    signal = signal_tensors(graph)
    found = {}
    for name, info in graph.weights.items():
        if info.is_float:
            uses = [use for use in graph.uses(name) if _is_weight(graph, use, signal)]
            if uses:
                found[name] = uses
    return found


def _is_weight(graph: Graph, use: Use, signal: frozenset[str]) -> bool:
    """Whether a constant is multiplied with a signal here; the first operand of a MatMul may be the constant one.

    A layer that a backend keeps whole, as its framework has it, is taken to multiply with the matrices that it reads.
    """
    info = graph.weights[use.node.inputs[use.index] or ""]
    if use.node.op in BODIES:
        return is_matrix(info) or in_body(use) is not None
    if signal.isdisjoint(use.node.inputs):
        return False
    if VARIABLES in use.node.attributes:
        first = len(use.node.inputs) - int(use.node.attributes[VARIABLES])
        return use.index >= first and len(info.shape) > 1
    if use.node.op not in WEIGHTED | RECURRENT:
        return use.index == FLOAT_LAYERS.get(use.node.op)
    return use.role in _ROLES or (use.node.op == "MatMul" and use.index == 0)
