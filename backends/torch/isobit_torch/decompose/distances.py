"""Distances of all pairs of rows (codebooks, prototypes): Euclidean ones by a matrix product, as torch takes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from isobit_torch.decompose.expander import Expander
from isobit_torch.program.fx_nodes import aten

#: Up to so many rows on a side torch subtracts each pair, which keeps more digits of small distances.
_FEW_ROWS = 25
_TINY = torch.finfo(torch.float32).tiny


def decompose_distances(e: Expander, node: fx.Node, a: dict[str, Any]) -> fx.Node | None:
    """``sqrt(|x|^2 + |y|^2 - 2 x y)``, or ``|x - y|`` where there are few rows and for the first norm; others stay."""
    if a["p"] not in (1, 2):
        return None
    left, right = a["x1"], a["x2"]
    if a["p"] == 2 and _by_product(a.get("compute_mode"), left, right):
        squares = [_squared_length(e, x, part) for x, part in ((left, "left"), (right, "right"))]
        turned = e.call(aten.transpose.int, squares[1], -2, -1, part="right_turned")
        both = e.call(aten.add.Tensor, squares[0], turned, part="squares")
        columns = e.call(aten.transpose.int, right, -2, -1, part="columns", like=right)
        product = e.call(aten.matmul.default, left, columns, part="product")
        twice = e.call(aten.mul.Tensor, product, e.constant(2.0, "two"), part="twice")
        difference = e.call(aten.sub.Tensor, both, twice, part="difference")
        # Above 0: the gradient of a root of nothing is no number, and that of a distance of nothing is 0.
        return e.call(aten.sqrt.default, e.call(aten.clamp_min.default, difference, _TINY, part="total"))
    rows = e.call(aten.unsqueeze.default, left, -2, part="rows", like=left)
    others = e.call(aten.unsqueeze.default, right, -3, part="others", like=right)
    difference = e.call(aten.sub.Tensor, rows, others, part="difference")
    if a["p"] == 1:
        return e.call(aten.sum.dim_IntList, e.call(aten.abs.default, difference, part="sizes"), [-1])
    return e.call(aten.linalg_vector_norm.default, difference, 2, [-1])


def _by_product(mode: int | None, left: fx.Node, right: fx.Node) -> bool:
    """What torch does where both counts of rows are known; an open one is large beside another open one alone."""
    if mode in (1, 2):
        return mode == 1
    counts = [x.meta["val"].shape[-2] for x in (left, right)]
    known = [int(n) for n in counts if isinstance(n, int)]
    return max(known, default=0) > _FEW_ROWS or not known


def _squared_length(e: Expander, x: fx.Node, part: str) -> fx.Node:
    square = e.call(aten.mul.Tensor, x, x, part=f"{part}_square", like=x)
    return e.call(aten.sum.dim_IntList, square, [-1], True, part=f"{part}_length", like=x)
