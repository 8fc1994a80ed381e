"""LSTMCell, GRUCell and RNNCell: one step, as the linear layers and gates that it is.

A first state of zeros is left out: a product with it is its bias alone.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from isobit_torch.decompose.expander import Expander
from isobit_torch.decompose.recurrent import replace_results
from isobit_torch.program.fx_nodes import aten, is_constant, is_zeros, op_name


def decompose_lstm_cell(e: Expander, node: fx.Node, a: dict[str, Any]) -> None:
    """Readers of both results are replaced here; returns None, as nothing reads the call any more."""
    hidden, cell = a["hx"]
    if not _has_constant_weights(a) or any(op_name(user) != "getitem" for user in node.users):
        return
    i, f, g, o = _split(e, a, _sum(e, _from_hidden(e, a, hidden), _from_input(e, a), "gates"), 4, "gates.split")
    i, f, o = (_call(e, aten.sigmoid.default, gate, part=part) for gate, part in ((i, "i"), (f, "f"), (o, "o")))
    state = _call(e, aten.mul.Tensor, i, _call(e, aten.tanh.default, g, part="g"), part="new")
    if not is_zeros(cell):
        state = _sum(e, _call(e, aten.mul.Tensor, f, cell, part="kept"), state, "cell")
    result = _call(e, aten.mul.Tensor, o, _call(e, aten.tanh.default, state, part="squashed"))
    replace_results(e.graph, node, {0: result, 1: state})


def decompose_gru_cell(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    """The reset gate comes behind the linear layer of the state."""
    if not _has_constant_weights(a):
        return None
    product, hidden = _from_hidden(e, a, a["hx"]), a["hx"]
    inner: list[Any] = [None] * 3 if product is None else _split(e, a, product, 3, "hidden.split")
    outer = _split(e, a, _from_input(e, a), 3, "input.split")
    r, z = (
        _call(e, aten.sigmoid.default, _sum(e, inner[i], outer[i], f"{part}.sum"), part=part)
        for i, part in enumerate("rz")
    )
    reset = None if inner[2] is None else _call(e, aten.mul.Tensor, inner[2], r, part="reset")
    n = _call(e, aten.tanh.default, _sum(e, outer[2], reset, "n.sum"), part="n")
    if is_zeros(hidden):
        return _call(e, aten.sub.Tensor, n, _call(e, aten.mul.Tensor, n, z, part="left_out"))
    change = _call(e, aten.mul.Tensor, _call(e, aten.sub.Tensor, hidden, n, part="change"), z, part="kept")
    return _call(e, aten.add.Tensor, change, n)


def decompose_rnn_cell(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    """One activation of the sum of both linear layers."""
    if not _has_constant_weights(a):
        return None
    total = _sum(e, _from_hidden(e, a, a["hx"]), _from_input(e, a), "sum")
    return _call(e, aten.tanh.default if op_name(node) == "rnn_tanh_cell" else aten.relu.default, total)


def _has_constant_weights(a: dict[str, Any]) -> bool:
    return all(value is None or is_constant(value) for value in (a["w_ih"], a["w_hh"], a["b_ih"], a["b_hh"]))


def _call(e: Expander, target: Any, *args: Any, part: str = "") -> fx.Node:
    return e.call(target, *args, part=part, like=args[0])


def _from_input(e: Expander, a: dict[str, Any]) -> fx.Node:
    return _call(e, aten.linear.default, a["input"], a["w_ih"], a["b_ih"], part="input")


def _from_hidden(e: Expander, a: dict[str, Any], hidden: fx.Node) -> fx.Node | None:
    if not is_zeros(hidden):
        return _call(e, aten.linear.default, hidden, a["w_hh"], a["b_hh"], part="hidden")
    bias: fx.Node | None = a["b_hh"]
    return bias


def _sum(e: Expander, left: fx.Node | None, right: fx.Node | None, part: str) -> fx.Node:
    if left is None or right is None:
        operand = left if right is None else right
        assert operand is not None
        return operand
    return _call(e, aten.add.Tensor, left, right, part=part)


def _split(e: Expander, a: dict[str, Any], total: fx.Node, count: int, part: str) -> list[fx.Node]:
    """The gates, along the last axis: a bias has no other."""
    parts = _call(e, aten.split.Tensor, total, int(a["w_hh"].meta["val"].shape[1]), -1, part=part)
    return [e.call(operator.getitem, parts, gate, like=total) for gate in range(count)]
