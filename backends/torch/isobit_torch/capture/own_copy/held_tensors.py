"""The tensors that an attribute of a module holds, in containers that may hold themselves."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain, repeat
from typing import Any

import torch
from torch.utils import _pytree as pytree


def held_tensors(value: Any) -> Iterator[torch.Tensor]:
    """In the order of torch's pytrees, whose kinds of containers these are; what is met again is left out."""
    seen: dict[int, Any] = {}  # with the objects themselves: an identity holds as long as they live
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, torch.Tensor):
            yield item
        elif id(item) not in seen:
            seen[id(item)] = item
            parts = pytree.tree_leaves(item, is_leaf=partial(_answer, chain([False], repeat(True))))
            waiting.extend(part for part in reversed(parts) if part is not item)


def _answer(answers: Iterator[bool], asked: Any) -> bool:
    """Whether what is asked about is a leaf: the first is the whole, which is taken apart once."""
    return next(answers)
