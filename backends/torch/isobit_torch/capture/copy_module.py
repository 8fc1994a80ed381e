"""Copies of the user's module, which itself is never changed."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from isobit.errors import ModelError


def copy_module(model: nn.Module, *, is_shared: bool = False) -> nn.Module:
    """A copy in evaluation mode; where `is_shared`, around the same parameters.

    A tensor that a forward pass has left in the module (features, attention maps) is copied without its history.
    Raises ModelError.
    """
    for name, parameter in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(parameter):
            raise ModelError(f"{name!r} has no values yet: run the model once on a batch, or load its weights, first")
    memo: dict[int, Any] = {}
    for module in model.modules():
        held = [value for name, value in vars(module).items() if name != "_modules"]
        for leaf in pytree.tree_leaves(held):
            if isinstance(leaf, torch.Tensor) and not leaf.is_leaf:
                memo[id(leaf)] = leaf.detach().clone()
    if is_shared:
        memo |= {id(parameter): parameter for parameter in model.parameters()}
    try:
        return copy.deepcopy(model, memo).eval()
    except Exception as error:
        raise ModelError(f"the model cannot be copied: {error}") from error
