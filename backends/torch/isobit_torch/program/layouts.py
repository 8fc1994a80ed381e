"""`isobit.graph` on tensors, where gradients pass through."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from isobit.graph import Blocks, Layout, Permute, View


def to_canonical(native: Tensor, layout: Layout) -> Tensor:
    """The canonical tensor of a native one; a view where the layout allows."""
    for step in layout:
        if isinstance(step, Permute):
            native = native.permute(step.axes)
        elif isinstance(step, View):
            native = native.reshape(step.shape)
        elif isinstance(step, Blocks):
            native = _reordered(native, step.order)
        else:
            native = native[step.index]
    return native


def to_native(canonical: Tensor, layout: Layout, native: Tensor) -> Tensor:
    """The native tensor of a canonical one; where the layout takes a part, the rest is that of `native`."""
    result = canonical
    for position in range(len(layout) - 1, -1, -1):
        step = layout[position]
        if isinstance(step, Permute):
            result = result.permute(_inverse(step.axes))
        elif isinstance(step, View):
            result = result.reshape(step.before)
        elif isinstance(step, Blocks):
            result = _reordered(result, _inverse(step.order))
        else:
            whole = to_canonical(native, layout[:position]).clone()
            whole[step.index] = result
            result = whole
    return result


def _inverse(order: Sequence[int]) -> list[int]:
    """The permutation back; NumPy's argsort is not for torch.compile to see."""
    return [order.index(place) for place in range(len(order))]


def _reordered(x: Tensor, order: Sequence[int]) -> Tensor:
    blocks = x.chunk(len(order))
    return torch.cat([blocks[block] for block in order])
