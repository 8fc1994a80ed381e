"""Nodes and constants that nobody reads, removed; what onnxruntime needs beside what is read stays.

onnxruntime (1.32) refuses to run an Attention that is given a cache and has no outputs for the longer one, even where
nobody reads these.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as passes

#: Where an Attention reads the cache.
_CACHE = (4, 5)


def remove_unused(model: ir.Model) -> None:
    """Remove what neither an output nor a node with an effect reads, in place."""
    caching = [
        (node, [(value.name, value.type, value.shape) for value in node.outputs])
        for graph in model.graphs()
        for node in graph
        if _has_cache(node)
    ]
    passes.RemoveUnusedNodesPass()(model)
    for node, outputs in caching:
        if node.graph is None:
            continue
        node.resize_outputs(len(outputs))
        for value, (name, kind, shape) in zip(node.outputs, outputs, strict=True):
            value.name, value.type, value.shape = name, kind, shape


def _has_cache(node: ir.Node) -> bool:
    given = [*node.inputs, *[None] * 6]
    return node.domain == "" and node.op_type == "Attention" and any(given[index] is not None for index in _CACHE)
