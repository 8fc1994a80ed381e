"""Marks: identity calls with a label, which torch.onnx.export carries into the ONNX model.

They tell where each tensor of the graph is after the exporter's decompositions, without trusting any name.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from isobit.graph import Graph, Input, Site, Tensor, Weight
from isobit_torch.program.fx_nodes import behind, op_name
from isobit_torch.program.program import copy_graph
from isobit_torch.translate.sites import bind, read_instead
from isobit_torch.translate.translate import Translation

if TYPE_CHECKING:
    import onnx_ir as ir

DOMAIN, MARK = "isobit", "Mark"

_LIBRARY: Any = torch.library.Library("isobit", "FRAGMENT")  # type: ignore[no-untyped-call]

_TYPES = (
    "float",
    "float16",
    "bfloat16",
    "double",
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
)


@cache
def mark_operator() -> Any:
    """The operator ``isobit::mark(Tensor, str) -> Tensor``, registered once in a process.

    Not by `torch.library.custom_op`, which makes tracing slower: each mark is traced several times.
    """
    _LIBRARY.define("mark(Tensor x, str label) -> Tensor")
    _LIBRARY.impl("mark", lambda x, label: x.clone(), "CPU")
    _LIBRARY.impl("mark", lambda x, label: torch.empty_like(x), "Meta")
    return torch.ops.isobit.mark.default


def onnx_translation() -> dict[Any, Any]:
    """How torch.onnx.export writes a mark: a node of our own domain with the label as attribute."""
    from onnx.defs import OpSchema
    from onnxscript.values import Op, Opset

    parameter, attribute = OpSchema.FormalParameter, OpSchema.Attribute
    schema = OpSchema(
        MARK,
        DOMAIN,
        1,
        inputs=[parameter("x", "T")],
        outputs=[parameter("y", "T")],
        type_constraints=[("T", [f"tensor({kind})" for kind in _TYPES], "")],
        attributes=[attribute("label", OpSchema.AttrType.STRING, required=True)],
    )
    operator: Any = Op(Opset(DOMAIN, 1), MARK, schema)

    def mark(x: Any, label: str) -> Any:
        return operator(x, label=label)

    return {mark_operator(): mark}


def marked_graph(graph: fx.Graph, translation: Translation) -> tuple[fx.Graph, dict[str, Site]]:
    """A copy of the float graph with a mark on every tensor, and on each reader of a tensor or constant with several.

    Constants themselves keep their names in the export, and are marked there (`mark_constants`).
    """
    marked_copy, copies = copy_graph(graph)
    labels: dict[str, Site] = {}
    neutral = translation.graph

    def mark(source: fx.Node, site: Site) -> fx.Node:
        label = f"{len(labels)}"
        labels[label] = site
        return marked_copy.call_function(mark_operator(), (source, label))

    for node in neutral.nodes:
        for index, name in enumerate(node.inputs):
            if name is not None and _is_shared(translation, name):
                _mark_readers(marked_copy, copies, translation, Input(node.name, index), mark)
    for site in (Tensor(name) for name in neutral.tensors if not _is_complex(neutral, name)):
        source = copies[translation.values[site.name]]
        readers = [user for user in source.users if op_name(user) != "sym_size"]
        with marked_copy.inserting_after(behind(source)):
            marked = mark(source, site)
        for reader in readers:
            reader.replace_input_with(source, marked)
    return marked_copy, labels


def _is_shared(translation: Translation, name: str) -> bool:
    """Whether several inputs of nodes, one of which may be an output of the model, read a tensor or a kept constant."""
    graph = translation.graph
    if _is_complex(graph, name):
        return False
    if name in graph.tensors:
        return len(graph.uses(name)) + (name in graph.output_tensors) > 1
    return len(graph.source_readers(name)) > 1 and (graph.weights[name].source or name) in translation.attributes


def _is_complex(graph: Graph, name: str) -> bool:
    """Spectra: the exporter writes them as pairs of numbers, which a mark of one tensor is not; nothing rounds them."""
    infos = (graph.tensors.get(name), graph.weights.get(name))
    return any(info is not None and info.dtype.startswith("complex") for info in infos)


def mark_constants(model: ir.Model, translation: Translation, labels: dict[str, Site]) -> None:
    """Put a mark between each constant of the graph and its readers in an exported model; `labels` grows."""
    import onnx_ir as ir

    graph = translation.graph
    for source in sorted({info.source or name for name, info in graph.weights.items()} & set(translation.attributes)):
        value = model.graph.initializers.get(str(translation.attributes[source].target))
        if value is None or not value.uses():
            continue
        label = f"{len(labels)}"
        labels[label] = Weight(source)
        node = ir.Node(DOMAIN, MARK, [value], [ir.AttrString("label", label)], name=f"{MARK}.{label}")
        node.outputs[0].name = f"{value.name}.{MARK}"
        node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
        ir.convenience.replace_all_uses_with(value, node.outputs[0])
        node.replace_input_with(0, value)
        model.graph.insert_before(model.graph[0], node)


def _mark_readers(graph: fx.Graph, copies: Any, translation: Translation, site: Input, mark: Any) -> None:
    for reader in bind_readers(translation, site):
        node, read = copies[reader.node], copies[reader.read]
        with graph.inserting_before(node):
            marked = mark(read, site)
        read_instead(node, reader.index, read, marked)


def bind_readers(translation: Translation, site: Input) -> tuple[Any, ...]:
    """The native readers of one input, none where it is a setting."""
    from isobit.errors import EncodingError

    try:
        return bind(translation, site).readers or ()
    except EncodingError:
        return ()
