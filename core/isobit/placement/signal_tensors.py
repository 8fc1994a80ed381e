"""Which tensors carry the network's signal, and which are masks, indices and shape arithmetic."""

from __future__ import annotations

from isobit.graph.graph import Graph


def signal_tensors(graph: Graph) -> set[str]:
    """Tensors that carry the network's signal: they depend on floats, on 8-bit pixels, or on a table of floats.

    A table is read by indices (Gather), or projected as a whole by a layer (DeBERTa's relative positions).
    """
    signal = {name for name in graph.inputs if graph.is_float(name) or graph.tensors[name].dtype in ("uint8", "int8")}
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
