"""Nodes of the neutral graph as ATen calls: what edits insert."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from isobit.errors import EditError
from isobit.graph import Node
from isobit_torch.program.fx_nodes import aten

#: Makes a named call: (target, args, part of the name).
Make = Callable[..., fx.Node]
Rule = Callable[[Make, Node, list[Any]], fx.Node]

_UNARY = {
    "Relu": aten.relu.default, "Sigmoid": aten.sigmoid.default, "Tanh": aten.tanh.default, "Swish": aten.silu.default,
    "HardSwish": aten.hardswish.default, "Exp": aten.exp.default, "Sqrt": aten.sqrt.default, "Neg": aten.neg.default,
    "Abs": aten.abs.default, "Reciprocal": aten.reciprocal.default, "Identity": aten.alias.default,
    "HardSigmoid": aten.hardsigmoid.default, "Erf": aten.erf.default, "Log": aten.log.default,
}  # fmt: skip

_BINARY = {
    "Add": aten.add.Tensor, "Sub": aten.sub.Tensor, "Mul": aten.mul.Tensor, "Div": aten.div.Tensor,
    "Max": aten.maximum.default, "Min": aten.minimum.default, "Pow": aten.pow.Tensor_Tensor,
}  # fmt: skip


def lower(make: Make, node: Node, inputs: list[Any]) -> fx.Node:
    """The last call of a node; `inputs` are fx nodes or None. Raises EditError for an op that edits cannot make."""
    if node.op in _UNARY:
        return make(_UNARY[node.op], (inputs[0],))
    if node.op in _BINARY:
        return make(_BINARY[node.op], tuple(inputs))
    rule = _RULES.get(node.op)
    if rule is None:
        supported = ", ".join(sorted({*_UNARY, *_BINARY, *_RULES}))
        raise EditError(f"the PyTorch backend cannot make a {node.op} node ({node.name!r}); it makes {supported}")
    return rule(make, node, [*inputs, None, None, None, None])


def _conv(make: Make, node: Node, inputs: list[Any]) -> fx.Node:
    x, weight, bias, *_ = inputs
    a = node.attributes
    count = len(a["kernel_shape"])
    pads = a["pads"]
    if pads[:count] != pads[count:]:
        flat = [n for axis in reversed(range(count)) for n in (pads[axis], pads[axis + count])]
        x, pads = make(aten.constant_pad_nd.default, (x, flat), "padded"), (0,) * count
    settings = (list(a["strides"]), list(pads[:count]), list(a["dilations"]), int(a["group"]))
    target = (aten.conv1d, aten.conv2d, aten.conv3d)[count - 1].default
    return make(target, (x, weight, bias, *settings))


def _conv_transpose(make: Make, node: Node, inputs: list[Any]) -> fx.Node:
    x, weight, bias, *_ = inputs
    a = node.attributes
    count = len(a["kernel_shape"])
    target = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)[count - 1]
    extra = list(a.get("output_padding", (0,) * count))
    pads = list(a["pads"][:count])
    return make(target, (x, weight, bias, list(a["strides"]), pads, extra, int(a["group"]), list(a["dilations"])))


def _clip(make: Make, node: Node, inputs: list[Any]) -> fx.Node:
    return make(aten.clamp.default, (inputs[0], node.attributes.get("min"), node.attributes.get("max")))


def _matmul(make: Make, node: Node, inputs: list[Any]) -> fx.Node:
    scale = node.attributes.get("scale")
    if scale is None:
        return make(aten.matmul.default, tuple(inputs[:2]))
    product = make(aten.matmul.default, tuple(inputs[:2]), "product")
    return make(aten.mul.Tensor, (product, float(scale)))


def _window(a: Any) -> tuple[list[int], list[int], list[int]]:
    count = len(a["kernel_shape"])
    return list(a["kernel_shape"]), list(a["strides"]), list(a["pads"][:count])


def _max_pool(make: Make, node: Node, inputs: list[Any]) -> fx.Node:
    a = node.attributes
    target = (aten.max_pool1d, aten.max_pool2d, aten.max_pool3d)[len(a["kernel_shape"]) - 1].default
    return make(target, (inputs[0], *_window(a), list(a["dilations"]), bool(a.get("ceil_mode", 0))))


def _average_pool(make: Make, node: Node, inputs: list[Any]) -> fx.Node:
    a = node.attributes
    target = (aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d)[len(a["kernel_shape"]) - 1].default
    return make(target, (inputs[0], *_window(a), bool(a.get("ceil_mode", 0)), bool(a.get("count_include_pad", 0))))


def _global_pool(make: Make, node: Node, inputs: list[Any]) -> fx.Node:
    spatial = list(range(-(len(inputs[0].meta["shape"]) - 2), 0))
    return make(aten.mean.dim, (inputs[0], spatial, bool(node.attributes.get("keepdims", 1))))


def _reshape(make: Make, node: Node, inputs: list[Any]) -> fx.Node:
    """The batch is kept; one more unknown dimension at most can follow from the rest."""
    target = list(node.attributes["shape"])
    if target.count(-1) > 1 and target[0] == -1:
        target[0] = make(aten.sym_size.int, (inputs[0], 0), size=True)
    if target.count(-1) > 1:
        raise EditError(f"node {node.name!r} (Reshape) has several dynamic dimensions and cannot be made anew")
    return make(aten.reshape.default, (inputs[0], target))


def _slice(make: Make, node: Node, inputs: list[Any]) -> fx.Node:
    """One axis after the other."""
    x: fx.Node = inputs[0]
    a = node.attributes
    if any(step < 1 for step in a["steps"]):
        raise EditError(f"the PyTorch backend cannot make node {node.name!r} (Slice), which goes backwards")
    cuts = list(zip(a["axes"], a["starts"], a["ends"], a["steps"], strict=True))
    for number, (axis, start, end, step) in enumerate(cuts, 1):
        part = "" if number == len(cuts) else f"axis{axis}"
        x = make(aten.slice.Tensor, (x, axis, start, end, step), part)
    return x


def _softmax(make: Make, node: Node, inputs: list[Any]) -> fx.Node:
    return make(aten.softmax.int, (inputs[0], node.attributes.get("axis", -1)))


def _layer_norm(make: Make, node: Node, inputs: list[Any]) -> fx.Node:
    x, weight, bias, *_ = inputs
    shape = [int(n) for n in weight.meta["shape"]]
    return make(aten.layer_norm.default, (x, shape, weight, bias, node.attributes.get("epsilon", 1e-5)))


def _batch_norm(make: Make, node: Node, inputs: list[Any]) -> fx.Node:
    settings = (False, 0.1, node.attributes.get("epsilon", 1e-5), False)
    return make(aten.batch_norm.default, (*inputs[:5], *settings))


_RULES: dict[str, Rule] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Linear": lambda make, node, inputs: make(aten.linear.default, tuple(inputs[:3])),
    "MatMul": _matmul,
    "Gather": lambda make, node, inputs: make(aten.embedding.default, tuple(inputs[:2])),
    "Clip": _clip,
    "Gelu": lambda make, node, inputs: make(
        aten.gelu.default, (inputs[0],), approximate=node.attributes.get("approximate", "none")
    ),
    "LeakyRelu": lambda make, node, inputs: make(aten.leaky_relu.default, (inputs[0], node.attributes["alpha"])),
    "PRelu": lambda make, node, inputs: make(aten.prelu.default, tuple(inputs[:2])),
    "Slice": _slice,
    "Softmax": _softmax,
    "LayerNormalization": _layer_norm,
    "BatchNormalization": _batch_norm,
    "Transpose": lambda make, node, inputs: make(aten.permute.default, (inputs[0], list(node.attributes["perm"]))),
    "Reshape": _reshape,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_pool,
}
