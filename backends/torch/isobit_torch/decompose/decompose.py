"""Preparing the graph: composite calls become the elementary ones of the neutral vocabulary, one node each.

What is inside attention can then be quantized, and a node of the graph is a node of the neutral graph.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx, nn

from isobit_torch.decompose.distances import decompose_distances
from isobit_torch.decompose.einsum import decompose_einsum
from isobit_torch.decompose.expander import Expander, Rule
from isobit_torch.decompose.magnitudes import MAGNITUDES
from isobit_torch.decompose.math import MATH
from isobit_torch.decompose.moves import MOVES, repeat_interleaved
from isobit_torch.decompose.recurrent import decompose_recurrent
from isobit_torch.decompose.recurrent_cells import decompose_gru_cell, decompose_lstm_cell, decompose_rnn_cell
from isobit_torch.decompose.spectra import decompose_istft
from isobit_torch.decompose.whole_numbers import make_floats
from isobit_torch.program.constants import add_constant
from isobit_torch.program.fx_nodes import DTYPE, NAME, arguments, aten, is_constant, is_tensor, op_name


def decompose(graph: fx.Graph, root: nn.Module) -> tuple[str, ...]:
    """Apply the rules to every node, in order; returns notes on what cannot be trained any more."""
    expander = Expander(graph, root)
    for node in list(graph.nodes):
        if node.target is aten.view.dtype:
            continue
        rule = _RULES.get(op_name(node))
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        expander.node = node
        with graph.inserting_before(node):
            make_floats(expander)
            result = None if rule is None else rule(expander, node, arguments(node))
        if result is None:
            continue
        if "val" in node.meta and "val" not in result.meta and isinstance(node.meta["val"], torch.Tensor):
            result.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(result)
        graph.erase_node(node)
    return tuple(expander.notes)


def _attention(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node:
    query, key, value, mask = a["query"], a["key"], a["value"], a["attn_mask"]
    if a.get("enable_gqa"):
        heads, groups = (n.meta["val"].shape[-3] for n in (query, key))
        if heads != groups:
            key, value = (
                repeat_interleaved(e, n, -3, int(heads // groups), f"{part}_repeat")
                for n, part in ((key, "key"), (value, "value"))
            )
    scale = a["scale"]
    if scale is None:
        scale = 1.0 / math.sqrt(int(query.meta["val"].shape[-1]))
    transposed = e.call(aten.transpose.int, key, -2, -1, part="key_transposed")
    scores = e.call(aten.matmul.default, query, transposed, part="product")
    scores = e.call(aten.mul.Tensor, scores, e.constant(scale, "scale"), part="scores")
    if a["is_causal"]:
        rows, columns = e.size(query, -2), e.size(key, -2)
        ones = e.call(
            aten.ones.default, [rows, columns], part="ones", dtype=torch.bool, device=query.meta["val"].device
        )
        mask = e.call(aten.tril.default, ones, part="causal")
        for boolean in (ones, mask):
            boolean.meta[DTYPE] = "bool"
    if mask is not None:
        if mask.meta[DTYPE] == "bool":
            # The lowest float instead of -inf: a row that is masked altogether must not become NaN.
            low = torch.finfo(torch.float32).min
            mask = e.call(aten.where.self, mask, e.constant(0.0, "keep"), e.constant(low, "drop"), part="bias")
        scores = e.call(aten.add.Tensor, scores, mask, part="masked")
    weights = e.call(aten.softmax.int, scores, -1, part="softmax")
    if a["dropout_p"]:  # of training alone
        weights = e.call(aten.dropout.default, weights, a["dropout_p"], False, part="dropout")
    return e.call(aten.matmul.default, weights, value)


def _linear(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    """A weight that is computed makes it a product of two tensors; a bias that is computed, an addition."""
    weight, bias = a["weight"], a["bias"]
    if _from_constant(weight) and (bias is None or _from_constant(bias)):
        return None
    if not _from_constant(weight):
        transposed = e.call(aten.t.default, weight, part="weight_transposed")
        product = e.call(aten.matmul.default, a["input"], transposed, part="product" if bias is not None else "")
    else:
        product = e.call(aten.linear.default, a["input"], weight, part="product")
    return product if bias is None else e.call(aten.add.Tensor, product, bias)


def _from_constant(node: fx.Node) -> bool:
    """A parameter, or a transposed or reshaped one."""
    while node.op == "call_function" and op_name(node) in ("t", "transpose", "permute", "view", "reshape", "numpy_T"):
        node = node.args[0]  # type: ignore[assignment]
    return is_constant(node)


def _rsqrt(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node:
    return e.call(aten.reciprocal.default, e.call(aten.sqrt.default, a["self"], part="sqrt"))


def _stack(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node:
    parts = [e.call(aten.unsqueeze.default, t, a["dim"], part="unsqueezed", like=t) for t in a["tensors"]]
    axis = a["dim"] if a["dim"] >= 0 else a["dim"] + len(node.meta["val"].shape)
    return e.call(aten.cat.default, parts, axis)


def _unbind(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    for user in list(node.users):
        if op_name(user) != "getitem":
            return None
        index: Any = user.args[1]
        part = e.call(aten.select.int, a["self"], a["dim"], index, like=a["self"])
        part.meta["val"] = user.meta.get("val")
        user.replace_all_uses_with(part)
        e.graph.erase_node(user)
    return None


def _view(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node:
    """A view needs fitting strides, which the decomposed calls before it need not give."""
    return e.call(aten.reshape.default, a["self"], a["size"])


def _square(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node:
    return e.call(aten.mul.Tensor, a["self"], a["self"])


def _alpha(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    """``add(x, y, alpha)``: the factor is a product of its own."""
    if a.get("alpha", 1) == 1 or not is_tensor(a["other"]):
        return _scalar(e, node, a)
    scaled = e.call(aten.mul.Tensor, a["other"], e.constant(a["alpha"], "alpha"), part="scaled")
    return e.call(getattr(aten, op_name(node)).Tensor, a["self"], scaled)


def _scalar(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    """A number beside a float tensor is a constant of the graph, which a quantizer can reach."""
    left, right = a["self"], a["other"]
    if a.get("rounding_mode") == "floor":
        return MATH["floor_divide"](e, node, a)
    if a.get("rounding_mode") is not None or not str(node.meta.get(DTYPE)).startswith(("float", "bfloat")):
        return None
    name = op_name(node)
    if name == "rsub":
        name, left, right = "sub", right, left
    elif is_tensor(left) and is_tensor(right):
        return None
    unchanged = _unchanged(name, left, right)
    if unchanged is not None and unchanged.meta.get(DTYPE) == node.meta.get(DTYPE):
        return e.call(aten.alias.default, unchanged)
    operands = []
    for value, part in ((left, "left"), (right, "right")):
        if isinstance(value, bool | int | float):
            operands.append(e.constant(float(value) * (a.get("alpha", 1) if part == "right" else 1), part))
        elif is_tensor(value):
            operands.append(value)
        else:
            return None  # a size
    return e.call(getattr(aten, {"true_divide": "div"}.get(name, name)).Tensor, *operands)


def _unchanged(name: str, left: Any, right: Any) -> fx.Node | None:
    """The operand that a number beside it leaves as it is: ``sum(parts)`` in Python begins with 0."""
    if name in ("add", "mul") and is_tensor(right):
        left, right = right, left
    neutral = {"add": 0, "sub": 0, "mul": 1, "div": 1, "true_divide": 1}.get(name)
    is_neutral = isinstance(right, int | float) and right == neutral
    return left if is_neutral and isinstance(left, fx.Node) and is_tensor(left) else None


def _norm_constants(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    """A normalisation without scale or shift gets ones and zeros: ONNX's has both."""
    if a["weight"] is not None and a.get("bias", 0) is not None:
        return None
    shape = a.get("normalized_shape") or [int(a["input"].meta["val"].shape[1])]
    changed = dict(a)
    for part, fill in (("weight", torch.ones), ("bias", torch.zeros)):
        if part in changed and changed[part] is None:
            stem = f"{node.meta[NAME]}_{part}"
            changed[part] = add_constant(e.root, e.graph, stem, fill(shape))
    return e.call(node.target, *changed.values())


def _chunk(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    """Only a split into equal parts of known size is one in the neutral vocabulary."""
    size = a["self"].meta["val"].shape[a["dim"]]
    if not isinstance(size, int):
        return None
    return e.call(aten.split.Tensor, a["self"], -(-size // a["chunks"]), a["dim"])


def _cat(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    """Empty lists take part in no concatenation, whatever their rank: a cache begins as one."""
    parts = [t for t in a["tensors"] if tuple(t.meta["val"].shape) != (0,)]
    return None if len(parts) in (0, len(a["tensors"])) else e.call(aten.cat.default, parts, a["dim"])


def _multi_outputs(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    """The functional forms of batch norm have three results, of which inference reads the first."""
    epsilon = a.get("eps", 1e-5)
    result = e.call(
        aten.batch_norm.default,
        a["input"],
        a["weight"],
        a["bias"],
        a.get("running_mean"),
        a.get("running_var"),
        False,
        a.get("momentum", 0.1),
        epsilon,
        False,
    )
    for user in list(node.users):
        if op_name(user) == "getitem" and user.args[1] == 0:
            result.meta["val"], result.meta[DTYPE] = user.meta.get("val"), user.meta.get(DTYPE)
            user.replace_all_uses_with(result)
            e.graph.erase_node(user)
    return result


_RULES: dict[str, Rule] = {
    **MOVES,
    **MATH,
    **MAGNITUDES,
    "scaled_dot_product_attention": _attention,
    "linear": _linear,
    "rsqrt": _rsqrt,
    "stack": _stack,
    "unbind": _unbind,
    "view": _view,
    "_unsafe_view": _view,
    "square": _square,
    "add": _alpha,
    "sub": _alpha,
    "rsub": _alpha,
    "mul": _scalar,
    "div": _scalar,
    "true_divide": _scalar,
    "layer_norm": _norm_constants,
    "rms_norm": _norm_constants,
    "group_norm": _norm_constants,
    "chunk": _chunk,
    "cat": _cat,
    "istft": decompose_istft,
    "cdist": decompose_distances,
    "einsum": decompose_einsum,
    "_native_batch_norm_legit_no_training": _multi_outputs,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), decompose_recurrent),
    "lstm_cell": decompose_lstm_cell,
    "gru_cell": decompose_gru_cell,
    "rnn_tanh_cell": decompose_rnn_cell,
    "rnn_relu_cell": decompose_rnn_cell,
}
