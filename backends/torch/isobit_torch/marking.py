"""Marks: identity calls with a label, which torch.onnx.export carries into the ONNX model.

They tell where each tensor of the graph is after the exporter's decompositions, without trusting any name.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import fx

from isobit.sites import Input, Site, Tensor, Weight
from isobit_torch.binding import bind
from isobit_torch.fxtools import behind, op_name
from isobit_torch.program import copy_graph
from isobit_torch.translation import Translation

DOMAIN, MARK = "isobit", "Mark"

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
    """The operator ``isobit::mark(Tensor, str) -> Tensor``, registered once in a process."""

    @torch.library.custom_op("isobit::mark", mutates_args=())
    def mark(x: torch.Tensor, label: str) -> torch.Tensor:
        return x.clone()

    @mark.register_fake
    def _(x: torch.Tensor, label: str) -> torch.Tensor:
        return torch.empty_like(x)

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
    """A copy of the float graph with a mark on every tensor and constant, and on each reader of those with several."""
    made, copies = copy_graph(graph)
    labels: dict[str, Site] = {}
    neutral = translation.graph

    def mark(source: fx.Node, site: Site) -> fx.Node:
        label = f"{len(labels)}"
        labels[label] = site
        return made.call_function(mark_operator(), (source, label))

    sites: list[Site] = [Tensor(name) for name in neutral.tensors]
    sources = {info.source or name for name, info in neutral.weights.items()}
    sites += [Weight(name) for name in sorted(sources) if name in translation.attributes]
    for node in neutral.nodes:
        for index, name in enumerate(node.inputs):
            shared = name is not None and (len(neutral.uses(name)) > 1 or name in neutral.weights)
            if shared and (
                name in neutral.tensors or (neutral.weights[name or ""].source or name) in translation.attributes
            ):
                _mark_readers(made, copies, translation, Input(node.name, index), mark)
    for site in sites:
        source = copies[_source(translation, site)]
        readers = [user for user in source.users if op_name(user) != "sym_size"]
        with made.inserting_after(behind(source)):
            marked = mark(source, site)
        for reader in readers:
            reader.replace_input_with(source, marked)
    return made, labels


def _source(translation: Translation, site: Site) -> fx.Node:
    return translation.values[site.name] if isinstance(site, Tensor) else translation.attributes[str(site)]


def _mark_readers(made: fx.Graph, copies: Any, translation: Translation, site: Input, mark: Any) -> None:
    for reader in bind_readers(translation, site):
        node, read = copies[reader.node], copies[reader.read]
        with made.inserting_before(node):
            marked = mark(read, site)
        if reader.index is None or not isinstance(node.args[reader.index], fx.Node):
            node.replace_input_with(read, marked)
        else:
            node.args = tuple(marked if i == reader.index else value for i, value in enumerate(node.args))


def bind_readers(translation: Translation, site: Input) -> tuple[Any, ...]:
    """The native readers of one input, none where it is a setting."""
    from isobit.errors import EncodingError

    try:
        return bind(translation, site).readers or ()
    except EncodingError:
        return ()
