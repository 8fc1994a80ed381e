"""Normalisation by statistics of the data written out in elementary ops: one node, whatever the spelling.

Inside are means of squares, whose range over tokens is the square of the signal's: on 8 bits small ones would be lost.
"""

from __future__ import annotations

from isobit.canonical.matching import fuse
from isobit.canonical.norms.affine import with_vectors
from isobit.canonical.norms.group_norms import group_norm
from isobit.canonical.norms.layer_norms import MATCHERS
from isobit.canonical.weight_views import Weights
from isobit.graph.graph import Graph


def fuse_normalization(graph: Graph) -> Graph:
    """Layer, instance, group and root mean square norms, with what they are multiplied by and what is added to them."""
    for match in (*MATCHERS, group_norm):
        graph = fuse(graph, match)
    weights = Weights(graph.weights)
    return graph.with_nodes(tuple(with_vectors(node, weights) for node in graph.nodes), weights=weights)
