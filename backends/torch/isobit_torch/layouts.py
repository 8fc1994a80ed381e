"""`isobit.layout` on tensors, where gradients pass through."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from isobit.layout import Layout, Permute, View


def to_canonical(native: Tensor, layout: Layout) -> Tensor:
    """The canonical tensor of a native one; a view where the layout allows."""
    for step in layout:
        if isinstance(step, Permute):
            native = native.permute(step.axes)
        elif isinstance(step, View):
            native = native.reshape(step.shape)
        else:
            native = native[step.index]
    return native


def to_native(canonical: Tensor, layout: Layout, native: Tensor) -> Tensor:
    """The native tensor of a canonical one; where the layout takes a part, the rest is that of `native`."""
    result = canonical
    for position in range(len(layout) - 1, -1, -1):
        step = layout[position]
        if isinstance(step, Permute):
            result = result.permute(np.argsort(step.axes).tolist())
        elif isinstance(step, View):
            result = result.reshape(step.before)
        else:
            whole = to_canonical(native, layout[:position]).clone()
            whole[step.index] = result
            result = whole
    return result
