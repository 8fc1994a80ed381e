"""One canonical form of the neutral graph: a pure Graph -> Graph pass that every backend's graph goes through.

Frameworks write one network in many ways: a linear layer is Gemm, MatMul + Add or Dense; a layer norm is one node or
nine. Placement and encodings can only be equal where the graphs are, so each variant is brought to one form here.
Surviving names are kept: the pass removes interior tensors and invents none, so that every tensor of the canonical
graph is a tensor of the native model.

A backend whose program is the canonical graph itself may ask for more: what its framework writes in many steps, batch
norm or softmax, becomes one node too. Elsewhere a runtime runs these steps one by one, and they stay.
"""

from __future__ import annotations

import logging

from isobit.canonical.activations import fuse_activations
from isobit.canonical.attributes import normalize_attributes
from isobit.canonical.bounds import fuse_bounds
from isobit.canonical.channels import annotate_channels
from isobit.canonical.cleaning import (
    absorb_settings,
    drop_identities,
    drop_shape_arithmetic,
    drop_unread,
    fold_constant_views,
    join_reshapes,
    unify_reshapes,
)
from isobit.canonical.linear import to_linear
from isobit.canonical.matmul_scale import absorb_matmul_scale
from isobit.canonical.norms import fuse_normalization
from isobit.canonical.padding import absorb_padding
from isobit.canonical.per_channel import fuse_per_channel
from isobit.canonical.pooling import to_global_pooling
from isobit.canonical.recurrent import canonical_recurrent, drop_zero_states
from isobit.canonical.reductions import fuse_reductions
from isobit.canonical.weights import canonical_weights
from isobit.graph.check_graph import check_graph, check_structure, is_checking
from isobit.graph.graph import Graph, Node

logger = logging.getLogger(__name__)

CLEANING = (
    drop_identities,
    fold_constant_views,
    absorb_settings,
    drop_zero_states,
    drop_shape_arithmetic,
    normalize_attributes,
)
COMPOSED = (drop_unread, join_reshapes, fuse_bounds, fuse_reductions, fuse_per_channel)
FORMS = (
    to_linear,
    canonical_recurrent,
    canonical_weights,
    absorb_padding,
    fuse_normalization,
    fuse_activations,
    absorb_matmul_scale,
    unify_reshapes,
    to_global_pooling,
    annotate_channels,
)


def canonicalize(graph: Graph, *, composed: bool = False) -> Graph:
    """The canonical form of a backend's raw graph. Running it again changes nothing.

    `composed` is for backends that run the canonical graph itself: nodes that nothing reads go, and means, softmax,
    batch norm, a convolution's bias and limits become one node each where they are written in elementary steps.
    """
    if is_checking():
        check_structure(graph, "reading the model")
    for step in (*CLEANING, *(COMPOSED if composed else ()), *FORMS):
        changed = step(graph)
        if logger.isEnabledFor(logging.DEBUG) and changed is not graph:
            _log_change(step.__name__, graph, changed)
        if is_checking() and changed is not graph:  # a pass that found nothing gives back the graph that is checked
            check_structure(changed, step.__name__)
        graph = changed
    if is_checking():
        check_graph(graph, "canonicalize")
    logger.info("canonical form: %d nodes, %d constants", len(graph.nodes), len(graph.weights))
    return graph


def _log_change(step: str, before: Graph, after: Graph) -> None:
    """Which nodes a pass made, changed or removed."""
    old, new = ({node.name: _content(node) for node in graph.nodes} for graph in (before, after))
    changed = [name for name, content in new.items() if old.get(name) != content]
    removed = [name for name in old if name not in new]
    if changed or removed:
        logger.debug("%s: changed %s; removed %s", step, ", ".join(changed) or "none", ", ".join(removed) or "none")


def _content(node: Node) -> str:
    return f"{node.op} {node.inputs} {node.outputs} {dict(node.attributes)}"


__all__ = ["canonicalize"]
