"""Recurrent layers in the ONNX export: one call each, which the exporter does not decompose.

torch.onnx.export would write each weight as slices put together anew, where no quantizer could sit on it. Here a layer
is a node of isobit's own domain until the marks are taken out; then it becomes ONNX's, and its parameters ONNX's
constants.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx, nn

from isobit.errors import ModelError
from isobit.graph import Site, to_canonical
from isobit_torch.export.marks import DOMAIN
from isobit_torch.program.fx_nodes import NAME, arguments, attribute, op_name
from isobit_torch.program.modules import Recurrent
from isobit_torch.program.recurrent_calls import GATES, KINDS, has_projection, why_float

if TYPE_CHECKING:
    import onnx_ir as ir

_NAME = "Recurrent"

#: Inputs of our node, in the order of the module's arguments: the first three, then the two biases and the two states.
_WEIGHTS, _BIASES, _STATES = (1, 2), (3, 4), (5, 6)


@cache
def recurrent_operator() -> Any:
    """The operator ``isobit::recurrent``, registered once in a process; it computes what `Recurrent` does."""

    @torch.library.custom_op("isobit::recurrent", mutates_args=())
    def recurrent(
        x: torch.Tensor,
        weight: torch.Tensor,
        recurrent_weight: torch.Tensor,
        bias: torch.Tensor | None,
        recurrent_bias: torch.Tensor | None,
        hidden: torch.Tensor | None,
        cell: torch.Tensor | None,
        kind: str,
        activation: str,
        reverse: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        module = Recurrent(kind, activation, reverse=reverse).eval()
        results = module(x, weight, recurrent_weight, bias, recurrent_bias, hidden, cell)
        y, h, c = (t.clone() for t in (*results, x.new_empty(0))[:3])
        return y, h, c

    @recurrent.register_fake
    def _(
        x: torch.Tensor, weight: torch.Tensor, recurrent_weight: torch.Tensor, *rest: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        hidden = recurrent_weight.shape[1]
        state = x.new_empty(1, x.shape[1], hidden)
        return x.new_empty(x.shape[0], 1, x.shape[1], hidden), state, torch.empty_like(state)

    return torch.ops.isobit.recurrent.default


def refuse_projections(graph: fx.Graph) -> None:
    """torch.onnx.export writes an LSTM with projections as one without. Raises ModelError."""
    for node in graph.nodes:
        if op_name(node) not in KINDS:
            continue
        a = arguments(node)
        if "params" in a and "batch_sizes" not in a and has_projection(a):
            raise ModelError(
                f"the LSTM {node.meta[NAME]!r} cannot leave as ONNX, which has no projections (proj_size): "
                f"{why_float(node, a)}; make its weights parameters of their own before you open the model"
            )


def as_operators(graph: fx.Graph, root: nn.Module) -> None:
    """Call the operator instead of the modules, in place."""
    for node in list(graph.nodes):
        module = attribute(root, str(node.target)) if node.op == "call_module" else None
        if isinstance(module, Recurrent):
            with graph.inserting_before(node):
                settings = (module.kind, module.activation, module.reverse)
                call = graph.call_function(recurrent_operator(), (*node.args, *settings))
            node.replace_all_uses_with(call)
            graph.erase_node(node)


def recurrent_translation() -> dict[Any, Any]:
    """How torch.onnx.export writes the operator: a node of our own domain."""
    from onnx.defs import OpSchema
    from onnxscript.values import Op, Opset

    optional = OpSchema.FormalParameterOption.Optional
    names = ("x", "weight", "recurrent_weight", "bias", "recurrent_bias", "hidden", "cell")
    schema = OpSchema(
        _NAME,
        DOMAIN,
        1,
        inputs=[
            OpSchema.FormalParameter(name, "T", param_option=optional)
            if index > 2
            else OpSchema.FormalParameter(name, "T")
            for index, name in enumerate(names)
        ],
        outputs=[OpSchema.FormalParameter(name, "T") for name in ("y", "last_hidden", "last_cell")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(double)"], "")],
        attributes=[
            OpSchema.Attribute("kind", OpSchema.AttrType.STRING, required=True),
            OpSchema.Attribute("activation", OpSchema.AttrType.STRING, required=True),
            OpSchema.Attribute("reverse", OpSchema.AttrType.INT, required=True),
        ],
    )
    operator: Any = Op(Opset(DOMAIN, 1), _NAME, schema)

    def recurrent(
        x: Any,
        weight: Any,
        recurrent_weight: Any,
        bias: Any,
        recurrent_bias: Any,
        hidden: Any,
        cell: Any,
        kind: str,
        activation: str,
        reverse: bool,
    ) -> Any:
        operands = (x, weight, recurrent_weight, bias, recurrent_bias, hidden, cell)
        return operator(*operands, kind=kind, activation=activation, reverse=int(reverse))

    return {recurrent_operator(): recurrent}


def as_onnx_nodes(model: ir.Model, marked: dict[Site, list[Any]]) -> None:
    """Make ONNX's nodes of ours, in place; readers in `marked` follow.

    Raises ModelError for a weight that is read elsewhere too.
    """
    turned: set[str] = set()
    for node in [n for n in model.graph if n.domain == DOMAIN and n.op_type == _NAME]:
        bias = _as_onnx_node(model.graph, node, turned)
        for readers in marked.values():
            for position, reader in enumerate(readers):
                if isinstance(reader, tuple) and reader[0] is node and reader[1] in _BIASES:
                    readers[position] = (bias, reader[1] - _BIASES[0])
    model.opset_imports.pop(DOMAIN, None)


def _as_onnx_node(graph: ir.Graph, node: ir.Node, turned: set[str]) -> ir.Node | None:
    """Returns the node that joins the biases, None where there are none."""
    import onnx_ir as ir

    kind, activation = (node.attributes[name].as_string() for name in ("kind", "activation"))
    reverse = node.attributes["reverse"].as_int()
    node.resize_inputs(_STATES[-1] + 1)
    constants = [node.inputs[index] for index in (*_WEIGHTS, *_BIASES)]
    for value in constants:
        if value is not None and value.name not in turned:
            _reorder_gates(value, kind)
            turned.add(value.name or "")
    hidden = constants[1].shape[2] if constants[1] is not None and constants[1].shape is not None else 0
    joined = None
    if node.inputs[_BIASES[0]] is not None:
        joined = ir.Node("", "Concat", constants[2:], [ir.AttrInt64("axis", 1)], name=f"{node.name}_bias")
        joined.outputs[0].name, joined.outputs[0].type = f"{node.outputs[0].name}_bias", node.outputs[0].type
        graph.insert_before(node, [joined])
    node.replace_input_with(_BIASES[0], joined.outputs[0] if joined is not None else None)
    node.replace_input_with(_BIASES[1], None)
    if kind != "LSTM":
        node.resize_inputs(_STATES[0] + 1)
        node.resize_outputs(2)
    node.domain, node.op_type = "", kind
    node.attributes.clear()
    settings: dict[str, Any] = {"hidden_size": hidden, "direction": "reverse" if reverse else "forward"}
    if kind == "GRU":
        settings["linear_before_reset"] = 1
    if activation:
        settings["activations"] = [activation]
    for entry in ir.convenience.convert_attributes(settings):
        node.attributes.add(entry)
    return joined


def _reorder_gates(value: ir.Value, kind: str) -> None:
    """A parameter as ONNX has it: the gates in its order, an axis for the directions in front."""
    import onnx_ir as ir

    if value.const_value is None or any(use.node.domain != DOMAIN for use in value.uses()):
        raise ModelError(
            f"parameter {value.name!r} is read by a recurrent layer and by other operations; ONNX keeps the gates of a "
            "layer in another order: give the layer a parameter of its own"
        )
    native = to_canonical(value.const_value.numpy(), GATES[kind])[None]
    value.const_value = ir.Tensor(np.ascontiguousarray(native), value.dtype, name=value.name)
    value.shape = ir.Shape(native.shape)
