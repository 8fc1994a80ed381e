"""Rows that a mask picks (experts of a mixture, valid positions): computed for all rows, and written where it says so.

How many rows a mask picks only the data knows, and no graph of fixed sizes can hold it. Where what follows computes
each row by itself and writes it back by the same mask, all rows give the same: `AllRows` has the operations do that
while a module runs or is captured, and `require_by_row` tells by trying whether the module is of that kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from isobit.errors import ModelError
from isobit_torch.program.signature import Call

#: Where masks are thinned for trying, each row at a multiple of this is taken out.
_THINNED = 3


@dataclass(frozen=True)
class Rows:
    """The mask that numbers of rows stand for, flat; whether they are all rows in order, and none comes twice."""

    mask: torch.Tensor
    is_all: bool
    is_unique: bool


class AllRows(TorchFunctionMode):
    """A masked selection gives all rows, a write by it keeps the old value of the others.

    For trying, `is_picking` has the rows picked as they are; where `is_thinned`, masks lose every third of their rows.
    """

    def __init__(self, *, is_picking: bool = False, is_thinned: bool = False) -> None:
        super().__init__()
        self.is_picking, self.is_thinned = is_picking, is_thinned
        self.has_picked = False
        self._rows: dict[int, Rows] = {}  # numbers of rows, by identity
        self._chosen: dict[int, int] = {}  # numbers that topk gave and what is made of them: how many for each row
        self._loose: dict[int, torch.Tensor] = {}  # what was computed from picked rows and is not written back
        self._true: set[int] = set()  # whether a mask has any row
        self._kept: list[Any] = []  # identities hold while the objects live
        self._numbers: dict[int, int] = {}  # numbers of rows that code asks for one by one

    def escapes(self, outputs: Any) -> bool:
        """Whether outputs hold rows that no mask has written back."""
        return any(id(leaf) in self._loose for leaf in pytree.tree_leaves(outputs))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The operation, or what it is for all rows."""
        named = dict(kwargs or {})
        handler = _HANDLERS.get(getattr(func, "__name__", ""))
        found = NotImplemented if handler is None else handler(self, *args, **named)
        if found is not NotImplemented:
            return found
        found = func(*args, **named)
        given = pytree.tree_leaves((args, named))
        if any(id(value) in self._loose for value in given):
            self._loosen(found)
        self._follow_choice(getattr(func, "__name__", ""), given, found)
        return found

    def _loosen(self, value: Any) -> Any:
        for leaf in pytree.tree_leaves(value):
            if isinstance(leaf, torch.Tensor):
                self._loose[id(leaf)] = leaf
        return value

    def _keep(self, value: Any) -> Any:
        self._kept.append(value)
        return value

    def _follow_choice(self, name: str, given: Sequence[Any], found: Any) -> None:
        if name == "topk":
            numbers = self._keep(found)[1]
            self._chosen[id(self._keep(numbers))] = int(numbers.shape[-1])
        elif name in _KEEP_CHOICE and isinstance(found, torch.Tensor):
            sizes = [self._chosen[id(value)] for value in given if id(value) in self._chosen]
            if sizes:
                self._chosen[id(self._keep(found))] = sizes[0]

    # --- masks to rows ---

    def thinned(self, mask: torch.Tensor) -> torch.Tensor:
        """The mask, for trying with fewer rows."""
        self.has_picked = True
        if not self.is_thinned:
            return mask != 0
        keep = torch.arange(mask.numel(), device=mask.device).reshape(mask.shape) % _THINNED != 0
        return (mask != 0) & keep

    def numbers(self, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What ``mask.nonzero(as_tuple=True)`` gives, for all rows."""
        count = self._chosen.get(id(mask), 0)
        mask = self.thinned(mask)
        if self.is_picking:
            return mask.nonzero(as_tuple=True)
        axes = [axis for axis, size in enumerate(mask.shape) if isinstance(size, int) and size == count]
        if count and mask.ndim == 2 and len(axes) == 1:  # a row has at most one place among those that topk chose
            return self._first_numbers(mask, axes[0])
        numbers = []
        for axis, size in enumerate(mask.shape):
            counted = torch.arange(size, device=mask.device).reshape([-1 if a == axis else 1 for a in range(mask.ndim)])
            numbers.append(counted.expand(mask.shape).reshape(-1))
        rows = Rows(mask.reshape(-1), mask.ndim == 1, mask.ndim == 1)
        return tuple(self._numbered(one, rows) for one in numbers)

    def _first_numbers(self, mask: torch.Tensor, axis: int) -> tuple[torch.Tensor, ...]:
        other = 1 - axis
        places = mask.to(torch.int64).argmax(axis)
        counted = torch.arange(mask.shape[other], device=mask.device)
        hit = mask.any(axis)
        pair = (self._numbered(places, Rows(hit, False, True)), self._numbered(counted, Rows(hit, True, True)))
        return pair if axis == 0 else pair[::-1]

    def _numbered(self, numbers: torch.Tensor, rows: Rows) -> torch.Tensor:
        self._rows[id(self._keep(numbers))] = rows
        return numbers

    def rows_of(self, key: Any) -> Rows | None:
        """The rows that an index stands for, if it is one of picked rows."""
        parts = key if isinstance(key, tuple) else (key,)
        found = [self._rows[id(part)] for part in parts if id(part) in self._rows]
        if not found:
            return None
        whole = len(found) == found[0].mask.ndim or len(found) > 1
        return Rows(found[0].mask, found[0].is_all, found[0].is_unique or whole)

    # --- the operations ---

    def where(self, condition: torch.Tensor, *rest: Any, **named: Any) -> Any:
        """``torch.where(mask)``."""
        return NotImplemented if rest or named else self.numbers(condition)

    def nonzero(self, mask: torch.Tensor, *, as_tuple: bool = False) -> Any:
        """``mask.nonzero()``."""
        found = self.numbers(mask)
        if as_tuple:
            return found
        stacked = torch.stack(found, -1)
        rows = self._rows.get(id(found[0]))
        return stacked if rows is None else self._numbered(stacked, Rows(rows.mask, False, False))

    def unbind(self, numbers: torch.Tensor, dim: int = 0) -> Any:
        """A loop over picked rows visits all."""
        if id(numbers) not in self._rows or dim or not isinstance(numbers.shape[0], int):
            return NotImplemented
        found = []
        for number in self._visited(numbers):
            one = self._keep(torch.full(numbers.shape[1:], number, dtype=torch.int64, device=numbers.device))
            self._numbers[id(one)] = number
            found.append(one)
        return tuple(found)

    def number(self, value: torch.Tensor, *_: Any) -> Any:
        """``int(number)``, or ``modules[number]``."""
        return self._numbers.get(id(value), NotImplemented)

    def equal(self, value: torch.Tensor, other: Any) -> Any:
        """``number == 3``."""
        number = self._numbers.get(id(value))
        return number == other if number is not None and isinstance(other, int) else NotImplemented

    def tolist(self, numbers: torch.Tensor) -> Any:
        """``numbers.tolist()``: all."""
        if id(numbers) not in self._rows or numbers.ndim != 1 or not isinstance(numbers.shape[0], int):
            return NotImplemented
        return self._visited(numbers)

    def _visited(self, numbers: torch.Tensor) -> list[int]:
        """The rows that a loop over `numbers` visits."""
        return [number for number in range(numbers.shape[0]) if not self.is_thinned or number % _THINNED]

    def reshaped(self, numbers: torch.Tensor, *_: Any) -> Any:
        """Numbers of one axis without their last one, or as they are."""
        if id(numbers) in self._rows and numbers.ndim == 2 and numbers.shape[-1] == 1:
            return self._numbered(numbers[:, 0], self._rows[id(numbers)])
        if id(numbers) in self._rows and numbers.ndim == 1:
            return numbers
        return NotImplemented

    def any(self, mask: torch.Tensor, *rest: Any, **named: Any) -> Any:
        """``mask.any()``, on which code skips what it does for no row."""
        if rest or named or self.is_picking:
            return NotImplemented
        found = self._keep(torch.any(mask))
        self._true.add(id(found))
        return found

    def truth(self, value: torch.Tensor) -> Any:
        """``if mask.any()``."""
        return True if id(value) in self._true else NotImplemented

    def getitem(self, value: torch.Tensor, key: Any) -> Any:
        """``x[rows]``, ``x[mask]``."""
        if id(value) in self._numbers and key == 0:
            one = self._keep(value[0])
            self._numbers[id(one)] = self._numbers[id(value)]
            return one
        if id(value) in self._rows and isinstance(key, slice) and key == slice(None):
            return value
        if id(key) in self._numbers:
            number = self._numbers[id(key)]
            picked = value.narrow(0, number, 1) if key.ndim else value[number]
            if id(value) in self._chosen:
                self._chosen[id(self._keep(picked))] = self._chosen[id(value)]
            return picked
        if _is_mask(key):
            mask = self.thinned(key)
            return self._loosen(value[mask] if self.is_picking else value.reshape(-1, *value.shape[mask.ndim :]))
        rows = self.rows_of(key)
        if rows is None or id(value) in self._rows:
            return NotImplemented
        plain = key if isinstance(key, tuple) else (key,)
        if rows.is_all and id(plain[-1]) in self._rows and all(part is None for part in plain[:-1]):
            return self._loosen(value[plain[:-1]].clone() if len(plain) > 1 else value.clone())
        return self._loosen(value[key])

    def setitem(self, target: torch.Tensor, key: Any, value: Any) -> Any:
        """``x[rows] = y``, ``x[mask] = y``."""
        is_mask = _is_mask(key)
        if is_mask and not (isinstance(value, torch.Tensor) and value.ndim) and not self.is_thinned:
            return NotImplemented  # one value for all needs no rows
        if is_mask:
            mask = self.thinned(key)
            if self.is_picking or not isinstance(value, torch.Tensor):
                target[mask] = value
                return None
            new = value.reshape(target.shape) if value.ndim == target.ndim - mask.ndim + 1 else value
            target.copy_(torch.where(_beside(mask, target.ndim), new, target))
            return None
        rows = self.rows_of(key)
        if rows is None:
            return NotImplemented
        is_all = rows.is_all and id(key) in self._rows
        old = target if is_all else target[key]
        new = torch.where(_beside(rows.mask, old.ndim), value, old)
        if is_all:
            target.copy_(new)
        elif rows.is_unique:
            target[key] = new
        else:
            parts = key if isinstance(key, tuple) else (key,)
            target.index_put_(parts, new - old, accumulate=True)
        return None

    def index_add(self, target: torch.Tensor, dim: int, index: torch.Tensor, source: torch.Tensor, **named: Any) -> Any:
        """``out.index_add_(0, rows, y)``."""
        rows = self._rows.get(id(index))
        if rows is None or named:
            return NotImplemented
        around = [1] * source.ndim
        around[dim] = -1
        picked = torch.where(rows.mask.reshape(around), source, torch.zeros_like(source))
        return target.add_(picked) if rows.is_all else target.index_add_(dim, index, picked)


_KEEP_CHOICE = frozenset(
    ("one_hot", "permute", "transpose", "t", "squeeze", "eq", "__eq__", "to", "bool", "contiguous", "__getitem__")
)

_HANDLERS: Mapping[str, Callable[..., Any]] = {
    "where": AllRows.where,
    "nonzero": AllRows.nonzero,
    "argwhere": AllRows.nonzero,
    "unbind": AllRows.unbind,
    "__index__": AllRows.number,
    "__int__": AllRows.number,
    "item": AllRows.number,
    "__eq__": AllRows.equal,
    "eq": AllRows.equal,
    "tolist": AllRows.tolist,
    "squeeze": AllRows.reshaped,
    "flatten": AllRows.reshaped,
    "any": AllRows.any,
    "__bool__": AllRows.truth,
    "__getitem__": AllRows.getitem,
    "__setitem__": AllRows.setitem,
    "index_add_": AllRows.index_add,
}


def _is_mask(key: Any) -> bool:
    return isinstance(key, torch.Tensor) and key.dtype == torch.bool


def _beside(mask: torch.Tensor, ndim: int) -> torch.Tensor:
    """The mask with axes of one behind it, to meet values of `ndim` axes."""
    return mask.reshape(*mask.shape, *[1] * (ndim - mask.ndim))


def require_by_row(module: nn.Module, call: Call) -> None:
    """Raise ModelError unless all rows give what picked ones give, also of masks that pick less than here."""
    if not _is_by_row(module, call):
        raise ModelError("what the model computes from rows that a mask picks is not computed for each by itself")


def _is_by_row(module: nn.Module, call: Call) -> bool:
    found = []
    for is_picking in (True, False):
        for is_thinned in (False, True):
            mode = AllRows(is_picking=is_picking, is_thinned=is_thinned)
            args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, (call.args, call.kwargs))
            try:
                with torch.no_grad(), mode:
                    outputs = module(*args, **kwargs)
            except Exception:  # the module's own code, in a way that it was not written for
                return False
            if not mode.has_picked or (not is_picking and mode.escapes(outputs)):
                return False
            found.append([leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)])
    plain, thinned, of_all, of_all_thinned = found
    return _agree(plain, of_all) and _agree(thinned, of_all_thinned)


def _agree(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> bool:
    return len(found) == len(wanted) and all(
        a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-5, equal_nan=True)
        for a, b in zip(found, wanted, strict=True)
    )
