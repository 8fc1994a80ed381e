"""Einsum as products of two operands, and each of those as transpositions, reshapes and one MatMul."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from isobit_onnx.read.rewrite import Rewrite, attribute, changed_constant, constant_of, is_weight, shape_of

#: Stand for the axes of an ellipsis; Einsum itself has Latin letters alone.
_ELLIPSIS = "αβγδεζηθ"

Sizes = Mapping[str, int | None]


def split_einsums(model: ir.Model) -> bool:
    """Write every Einsum of more operands as several of two, in place; says if there was one."""
    several = [n for n in model.graph if n.op_type == "Einsum" and not n.domain and len(n.inputs) > 2]
    for node in several:
        _split(model.graph, node)
    return bool(several)


def expand_einsums(model: ir.Model) -> bool:
    """Write every Einsum of two operands that is a matrix product as MatMul, in place; says if there was one."""
    changed = False
    for node in list(model.graph):
        if node.op_type == "Einsum" and not node.domain and len(node.inputs) == 2:
            changed |= _expand(model.graph, node)
    return changed


def _split(graph: ir.Graph, node: ir.Node) -> None:
    """Multiply one operand after the other, the data first, each with what shares an axis with the product so far."""
    equation = str(attribute(node, "equation", "")).replace(" ", "").replace("...", ".")
    terms, arrow, result = equation.partition("->")
    values = [value for value in node.inputs if value is not None]
    if not arrow or len(terms.split(",")) != len(values):
        return
    waiting = list(zip(terms.split(","), values, strict=True))
    first = next((index for index, (_, value) in enumerate(waiting) if not is_weight(value)), 0)
    letters, product = waiting.pop(first)
    rewrite = Rewrite(graph, node)
    while waiting:
        index = next((i for i, (term, _) in enumerate(waiting) if set(term) & set(letters)), 0)
        term, value = waiting.pop(index)
        needed = {*result, *(letter for other, _ in waiting for letter in other)}
        joined = result if not waiting else "".join(c for c in dict.fromkeys(letters + term) if c in needed)
        step = f"{letters},{term}->{joined}".replace(".", "...")
        letters, product = joined, rewrite.op("Einsum", product, value, equation=step)
    rewrite.finish(product)


@dataclass(frozen=True)
class _Term:
    """One operand: its value, and a letter for each axis."""

    value: ir.Value
    letters: str


def _expand(graph: ir.Graph, node: ir.Node) -> bool:
    read = _terms(node)
    if read is None:
        return False
    left, right, result = read
    x, w = (right, left) if is_weight(left.value) and not is_weight(right.value) else (left, right)
    summed = [letter for letter in x.letters if letter in w.letters and letter not in result]
    batch = [letter for letter in x.letters if letter in w.letters and letter in result]
    rows = [letter for letter in x.letters if letter not in w.letters]
    columns = [letter for letter in w.letters if letter not in x.letters]
    if not summed or (batch and not rows) or set(result) != {*batch, *rows, *columns}:
        return False
    sizes = {**_sizes(x), **{letter: size for letter, size in _sizes(w).items() if size is not None}}
    joined = [letter for group in (summed, columns) if len(group) != 1 for letter in group]
    if any(sizes.get(letter) is None for letter in joined):
        return False
    kept = [*rows[:-1], *batch, *rows[-1:]]
    rewrite = Rewrite(graph, node)
    lhs = _arranged(rewrite, x, [kept, summed], sizes, len(kept))
    rhs = _arranged(rewrite, w, [batch, summed, columns], sizes, len(batch))
    product = rewrite.op("MatMul", lhs, rhs)
    if len(columns) != 1:
        target = [*[0] * len(kept), *(sizes[letter] or 0 for letter in columns)]
        product = rewrite.op("Reshape", product, rewrite.constant(target, "split", np.int64))
    rewrite.finish(_transposed(rewrite, product, [*kept, *columns], list(result)))
    return True


def _terms(node: ir.Node) -> tuple[_Term, _Term, str] | None:
    """Both operands and the letters of the result; None for what is no plain product."""
    equation = str(attribute(node, "equation", "")).replace(" ", "")
    terms, arrow, result = equation.partition("->")
    parts = terms.split(",")
    ranks = [len(value.shape) if value is not None and value.shape is not None else None for value in node.inputs]
    if not arrow or len(parts) != 2 or None in ranks:
        return None
    letters = []
    spread = ""
    for part, rank in zip(parts, ranks, strict=True):
        count = (rank or 0) - len(part.replace("...", "")) if "..." in part else 0
        if count < 0 or count > len(_ELLIPSIS):
            return None
        axes = _ELLIPSIS[len(_ELLIPSIS) - count :]
        spread = max(spread, axes, key=len)
        letters.append(part.replace("...", axes))
    result = result.replace("...", spread)
    first, second = node.inputs
    fits = all(len(term) == rank for term, rank in zip(letters, ranks, strict=True))
    if first is None or second is None or not fits or any(len(set(term)) < len(term) for term in (*letters, result)):
        return None
    return _Term(first, letters[0]), _Term(second, letters[1]), result


def _sizes(term: _Term) -> dict[str, int | None]:
    return dict(zip(term.letters, shape_of(term.value) or (), strict=False))


def _arranged(rewrite: Rewrite, term: _Term, groups: Sequence[Sequence[str]], sizes: Sizes, kept: int) -> ir.Value:
    """The operand with its axes in the order of `groups`; each group after the first is one axis."""
    order = [letter for group in groups for letter in group]
    array = constant_of(term.value)
    if array is not None:
        turned = array.transpose([term.letters.index(letter) for letter in order])
        if [*term.letters] == order and all(len(group) == 1 for group in groups[1:]):
            return term.value
        shape = [*turned.shape[:kept], *(prod(sizes[letter] or 0 for letter in group) for group in groups[1:])]
        return changed_constant(rewrite.graph, term.value, turned.reshape(shape), "matrix")
    value = _transposed(rewrite, term.value, list(term.letters), order)
    if all(len(group) == 1 for group in groups[1:]):
        return value
    known = [prod(sizes[letter] or 0 for letter in group) if len(group) != 1 else -1 for group in groups[1:]]
    return rewrite.op("Reshape", value, rewrite.constant([*[0] * kept, *known], "joined", np.int64))


def _transposed(rewrite: Rewrite, value: ir.Value, letters: list[str], order: list[str]) -> ir.Value:
    if letters == order:
        return value
    return rewrite.op("Transpose", value, perm=[letters.index(letter) for letter in order])
