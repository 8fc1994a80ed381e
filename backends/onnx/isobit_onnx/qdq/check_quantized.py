"""A written QDQ model is read back: every value that was to be quantized is, for those who read it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from isobit.encodings import Encoding
from isobit.errors import OutputError
from isobit_onnx.qdq.folded_weights import folded_weight
from isobit_onnx.qdq.table_lookups import lookup_of
from isobit_onnx.read.inference.map_types import load_file
from isobit_onnx.read.rewrite import constant_of
from isobit_onnx.translate.sites import NativeSite
from isobit_onnx.translate.translate import view_chain

_QUANTIZERS = frozenset({"QuantizeLinear", "Clip", "Max", "Cast"})


def check_complete(path: Path, placed: Iterable[tuple[NativeSite, Encoding]], interior: Mapping[str, Encoding]) -> None:
    """Raise OutputError when a value of `placed` or `interior` has no quantizer in the file: a runtime makes one up."""
    graph = load_file(path).graph
    values = ir.convenience.create_value_mapping(graph)
    nodes = {node.name or "": node for node in graph}
    outputs = {value.name for value in graph.outputs}
    lookups = (lookup_of(node) for node in graph if node.op_type == "DequantizeLinear")
    picked = {lookup.gather.name for lookup in lookups if lookup is not None}  # dequantized behind their readers
    for site in [*(site for site, _ in placed), *(NativeSite(name) for name in interior)]:
        if site.readers is not None:
            read = ((n, i, nodes[n].inputs[i]) for n, i in site.readers if n in nodes and n not in picked)
            missing = [f"{n}[{i}]" for n, i, value in read if not _is_dequantized(value)]
        else:
            missing = [] if _is_quantized(site.value, values, outputs) else [site.value]
        if missing:
            raise OutputError(
                f"the exported model has no quantizer at {missing[0]!r}, which the target quantizes: the runtime would "
                "make one up; leave it in float with exclude or overrides, and report this as a bug"
            )


def _is_quantized(name: str, values: Mapping[str, ir.Value], outputs: set[str | None]) -> bool:
    """Whether nobody reads the float value but its quantizer; constants and unread values are gone altogether."""
    value = values.get(name)
    if value is None:
        return True  # a constant: its integers are in the file under another name
    if name in outputs and _is_dequantized(value):
        return True
    if not value.uses() and name not in outputs:
        return True  # nobody reads it
    if value.is_initializer() and not value.is_graph_input():
        return False
    return any(use.node.op_type in _QUANTIZERS for use in value.uses())


def _is_dequantized(value: ir.Value | None) -> bool:
    """Whether a value, or what it is a view of, comes out of a DequantizeLinear or of a cast from a smaller float.

    A Max with one constant, which sets a cast apart from the steps of a norm (`fit_onnxruntime`), changes nothing.
    """
    for link in [] if value is None else view_chain(value):
        producer = link.producer()
        if producer is None:
            continue
        if (
            producer.op_type == "Max"
            and len(producer.inputs) == 2
            and np.all(constant_of(producer.inputs[1]) == -np.inf)
        ):
            return _is_dequantized(producer.inputs[0])
        if producer.op_type in ("DequantizeLinear", "Cast") or folded_weight(producer) is not None:
            return True
    return False
