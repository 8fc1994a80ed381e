"""einsum as permutations, sums, and for each pair of operands one matrix product or one multiplication."""

from __future__ import annotations

from typing import Any

from torch import fx

from isobit_torch.decompose.expander import Expander
from isobit_torch.program.fx_nodes import aten


def decompose_einsum(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    """Operands from left to right. A repeated letter in one operand (a diagonal) is left alone."""
    operands = list(a["tensors"])
    parsed = _parse(str(a["equation"]).replace(" ", ""), [len(n.meta["val"].shape) for n in operands])
    if parsed is None or a.get("path") is not None:
        return None
    terms, result = parsed
    value, term = operands[0], terms[0]
    for index, (other, right) in enumerate(zip(operands[1:], terms[1:], strict=True)):
        later = {*result, *(c for rest in terms[index + 2 :] for c in rest)}
        value, term = _pair(e, value, term, other, right, later)
    value, term = _sum(e, value, term, set(result))
    order = [term.index(c) for c in result]
    if order == list(range(len(order))):
        return value if value is not operands[0] else e.call(aten.alias.default, value)
    return e.call(aten.permute.default, value, order)


def _parse(equation: str, ranks: list[int]) -> tuple[list[str], str] | None:
    """The letters of operands and result; an ellipsis becomes capital Greek letters, from the right."""
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        return None
    if not arrow:
        letters = left.replace(",", "").replace(".", "")
        result = ("..." if "..." in left else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    hidden = [rank - len(term.replace("...", "")) for rank, term in zip(ranks, terms, strict=True) if "..." in term]
    if len(set(hidden)) > 1:
        return None  # the ellipsis broadcasts
    dots = "ΑΒΓΔΕΖΗΘ"[: hidden[0]] if hidden else ""
    terms = [term.replace("...", dots) for term in terms]
    if any(len(set(term)) != len(term) for term in terms):
        return None
    return terms, result.replace("...", dots)


def _sum(e: Expander, value: fx.Node, term: str, kept: set[str]) -> tuple[fx.Node, str]:
    """Sum over the letters that nobody reads any more."""
    axes = [axis for axis, c in enumerate(term) if c not in kept]
    if not axes:
        return value, term
    return e.call(aten.sum.dim_IntList, value, axes, part="sum"), "".join(c for c in term if c in kept)


def _pair(e: Expander, x: fx.Node, left: str, y: fx.Node, right: str, later: set[str]) -> tuple[fx.Node, str]:
    """One product of two operands: (batch, rows, contracted) by (batch, contracted, columns)."""
    sizes = {c: (x, axis) for axis, c in enumerate(left)} | {c: (y, axis) for axis, c in enumerate(right)}
    sizes = {c: e.size(*place) for c, place in sizes.items()}
    x, left = _sum(e, x, left, later | set(right))
    y, right = _sum(e, y, right, later | set(left))
    shared = [c for c in left if c in right]
    batch, contracted = [c for c in shared if c in later], [c for c in shared if c not in later]
    rows, columns = [c for c in left if c not in right], [c for c in right if c not in left]
    x = _permuted(e, x, left, [*batch, *rows, *contracted], "left")
    y = _permuted(e, y, right, [*batch, *contracted, *columns], "right")
    result = "".join((*batch, *rows, *columns))
    if not contracted:
        if rows and columns:
            x = _reshaped(e, x, [*(sizes[c] for c in (*batch, *rows)), *[1] * len(columns)], "left_spread")
            y = _reshaped(
                e, y, [*(sizes[c] for c in batch), *[1] * len(rows), *(sizes[c] for c in columns)], "right_spread"
            )
        elif rows or columns:
            spread = [*(sizes[c] for c in batch), *[1] * len(rows or columns)]
            x, y = (x, _reshaped(e, y, spread, "spread")) if rows else (_reshaped(e, x, spread, "spread"), y)
        return e.call(aten.mul.Tensor, x, y, part="product"), result
    plain = len(contracted) == 1 and len(columns) == 1 and (len(rows) == 1 or (rows and not batch))
    if not plain:
        shape = [sizes[c] for c in batch]
        inner, height, width = (_product(e, [sizes[c] for c in group]) for group in (contracted, rows, columns))
        x, y = _reshaped(e, x, [*shape, height, inner], "rows"), _reshaped(e, y, [*shape, inner, width], "columns")
    product = e.call(aten.matmul.default, x, y, part="product")
    if not plain:
        product = _reshaped(e, product, [sizes[c] for c in result], "shaped")
    return product, result


def _product(e: Expander, sizes: list[Any]) -> Any:
    """The number of elements of several axes; -1 where a size is dynamic, for reshape to work out."""
    total = 1
    for size in sizes:
        if not isinstance(size, int):
            return size if len(sizes) == 1 else -1
        total *= size
    return total


def _reshaped(e: Expander, x: fx.Node, shape: list[Any], part: str) -> fx.Node:
    return e.call(aten.reshape.default, x, shape, part=part)


def _permuted(e: Expander, operand: fx.Node, term: str, letters: list[str], part: str) -> fx.Node:
    if list(term) == letters:
        return operand
    return e.call(aten.permute.default, operand, [term.index(c) for c in letters], part=part, like=operand)
