"""The rule of each op: how a channel axis goes through it. Ops that are not listed let none be removed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from isobit.edits.slicing import elementwise_channels as elementwise
from isobit.edits.slicing import layer_channels as layers
from isobit.edits.slicing import moved_channels as moved
from isobit.edits.slicing.channel_relations import Fixed, Relation, Sizes, Slot, named
from isobit.graph.graph import Node
from isobit.graph.ops import BROADCAST, RECURRENT, UNARY

Rule = Callable[[Sizes, Node], Iterator[Relation]]

_ALONG_AXIS = ("Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "CumSum")
_NORMALIZATION = ("LayerNormalization", "RMSNormalization")
_POOLS = ("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "Resize")
_BLOCKED = frozenset({"GroupNormalization", "LRN", "Trilu", *_ALONG_AXIS, *_NORMALIZATION})
_REDUCTIONS = "Mean Sum Max Min Prod L1 L2 SumSquare LogSum LogSumExp".split()

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(sorted(UNARY - _BLOCKED), elementwise.unary),
    **dict.fromkeys((*sorted(BROADCAST), "Expand"), elementwise.broadcast),
    **dict.fromkeys(_ALONG_AXIS, elementwise.along_axis),
    **dict.fromkeys(_NORMALIZATION, elementwise.normalization),
    **dict.fromkeys(_POOLS, elementwise.pool),
    **{f"Reduce{kind}": elementwise.reduce for kind in _REDUCTIONS},
    **dict.fromkeys(("Conv", "ConvTranspose"), layers.convolution),
    **dict.fromkeys(sorted(RECURRENT), layers.recurrent),
    "Linear": layers.linear,
    "MatMul": layers.matmul,
    "Gather": layers.gather,
    "Transpose": moved.transpose,
    "Reshape": moved.reshape,
    "Concat": moved.concat,
    "Split": moved.split,
    "Slice": moved.slice_,
    "Pad": moved.pad,
}


def relations(sizes: Sizes, node: Node) -> list[Relation]:
    """All that a node says of the axes around it; of those that its rule leaves out, that they stay."""
    found = list(RULES.get(node.op, elementwise.all_fixed)(sizes, node))
    spoken: set[Slot] = set()
    for relation in found:
        spoken.update({relation.slot} if isinstance(relation, Fixed) else {relation.first, relation.second})
    silent = (
        Fixed(slot, f"{named(node)} blocks the removal of channels")
        for slot in sizes.slots(node)
        if slot not in spoken and sizes.size(slot) != 1
    )
    return [*found, *silent]
