"""einsum as the matrix product that it is, where it is one without reshaping."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import fx

from isobit_torch.fxtools import aten

if TYPE_CHECKING:
    from isobit_torch.expanding import Expander


def expand_einsum(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    """Two operands, one contracted axis, at most one free axis on the right: permute, matmul, permute."""
    equation, operands = str(a["equation"]).replace(" ", ""), list(a["tensors"])
    if len(operands) != 2 or "->" not in equation or "." in equation:
        return None
    terms, result = equation.split("->")
    left, right = terms.split(",")
    if any(len(set(term)) != len(term) for term in (left, right, result)):
        return None
    batch = [c for c in result if c in left and c in right]
    contracted = [c for c in left if c in right and c not in result]
    rows = [c for c in left if c not in right]
    columns = [c for c in right if c not in left]
    every = {*batch, *rows, *columns}
    if len(contracted) != 1 or len(columns) != 1 or every != set(result) or (batch and len(rows) != 1) or not rows:
        return None
    x = _permuted(e, operands[0], left, [*batch, *rows, *contracted], "left")
    y = _permuted(e, operands[1], right, [*batch, *contracted, *columns], "right")
    order = [*batch, *rows, *columns]
    if order == list(result):
        return e.call(aten.matmul.default, x, y)
    product = e.call(aten.matmul.default, x, y, part="product")
    return e.call(aten.permute.default, product, [order.index(c) for c in result])


def _permuted(e: Expander, operand: fx.Node, term: str, wanted: list[str], part: str) -> fx.Node:
    if list(term) == wanted:
        return operand
    return e.call(aten.permute.default, operand, [term.index(c) for c in wanted], part=part, like=operand)
