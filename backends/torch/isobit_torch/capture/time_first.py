"""Layers that take time on the first axis and samples on the second, as is the default of PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

#: Time and samples, as the example has them.
Sizes = frozenset[tuple[int, int]]


def time_first_sizes(module: nn.Module, run: Callable[[], Any]) -> Sizes:
    """The first two sizes of what such layers are given in a `run`; none where the module has no such layer.

    A module that turns its input around itself (samples or channels in front) gives them others than its input has.
    """
    kinds = (nn.RNNBase, nn.MultiheadAttention)
    layers = [part for part in module.modules() if isinstance(part, kinds) and not part.batch_first]
    found: set[tuple[int, int]] = set()

    def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        leaves = pytree.tree_leaves((args, kwargs))  # initial states too
        tensors = [x for x in leaves if isinstance(x, torch.Tensor) and x.ndim == 3]
        found.update((x.shape[0], x.shape[1]) for x in tensors)

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        if hooks:
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return frozenset(found)
