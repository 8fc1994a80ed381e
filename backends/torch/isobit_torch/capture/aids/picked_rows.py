"""Rows that a mask picks (experts of a mixture, valid positions): computed for all rows, and written where it says so.

How many rows a mask picks only the data knows, and no graph of fixed sizes can hold it. Where what follows computes
each row by itself and writes it back by the same mask, all rows give the same: `AllRows` has the operations do that
while a module runs or is captured, and `require_by_row` tells by trying whether the module is of that kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from isobit.errors import ModelError
from isobit_torch.capture.aids.split_rows import Counts, are_counts, changed, part
from isobit_torch.program.signature import Call

#: Where masks are thinned or spread for trying, each row at a multiple of this is taken out.
_THINNED = 3

#: Masks for trying: those of the example, these with fewer rows, whatever rows, and no row.
Masks = Literal["own", "thinned", "spread", "none"]


@dataclass(frozen=True)
class Rows:
    """The mask that numbers of rows stand for, flat; whether they are all rows in order, and none comes twice."""

    origin: Any  # which mask it is
    mask: torch.Tensor
    is_all: bool
    is_unique: bool


class AllRows(TorchFunctionMode):
    """A masked selection gives all rows, a write by it keeps the old value of the others.

    For trying (`is_tried`), `is_picking` has the rows picked as they are, and `masks` says by which masks.
    """

    def __init__(self, *, is_tried: bool = False, is_picking: bool = False, masks: Masks = "own") -> None:
        super().__init__()
        self.is_tried, self.is_picking, self.masks = is_tried, is_picking, masks
        self.has_picked = False
        self._counts = Counts(is_tried=is_tried)  # by which rows may be split
        self._rows: dict[int, Rows] = {}  # numbers of rows, by identity
        self._chosen: dict[int, int] = {}  # numbers that topk gave and what is made of them: how many for each row
        self._loose: dict[int, frozenset[Any]] = {}  # what is computed of picked rows and not written back: which masks
        self._origins: dict[int, Any] = {}  # how a mask is computed, to tell it from one that happens to be equal
        self._true: set[int] = set()  # whether a mask has any row
        self._kept: list[Any] = []  # identities hold while the objects live
        self._numbers: dict[int, int] = {}  # numbers of rows that code asks for one by one

    def escapes(self, outputs: Any) -> bool:
        """Whether outputs hold rows that no mask has written back."""
        return bool(self._masks_of(outputs))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The operation, or what it is for all rows."""
        named = dict(kwargs or {})
        handler = _HANDLERS.get(getattr(func, "__name__", ""))
        # What is given by names alone is computed as it is.
        found = NotImplemented if handler is None or not args else handler(self, *args, **named)
        if found is not NotImplemented:
            return found
        found = func(*args, **named)
        name, given = getattr(func, "__name__", ""), pytree.tree_leaves((args, named))
        self._loosen(args[0] if name == "__setitem__" else found, self._masks_of(given))
        self._follow_choice(name, given, found)
        if self.is_tried and isinstance(found, torch.Tensor) and (_is_mask(found) or name in _ARE_VIEWS):
            self._kept += [found, *given]
            self._origins[id(found)] = (func, *map(self._origin, given))
        return found

    def _origin(self, value: Any) -> Any:
        """What tells a tensor from others: how it is computed, or itself, as long as nothing is written to it."""
        if not isinstance(value, torch.Tensor):
            return value if isinstance(value, int | float | str | bool) else repr(value)
        return self._origins.get(id(value), id(value)), value._version if self.is_tried else 0

    def _masks_of(self, values: Any) -> frozenset[Any]:
        """The masks of the rows that values are computed from and not written back by."""
        found = [self._loose[id(leaf)] for leaf in pytree.tree_leaves(values) if id(leaf) in self._loose]
        return frozenset[Any]().union(*found)

    def _loosen(self, value: Any, masks: frozenset[Any]) -> Any:
        if masks:
            for leaf in pytree.tree_leaves(value):
                if isinstance(leaf, torch.Tensor):
                    self._loose[id(self._keep(leaf))] = masks
        return value

    def _keep(self, value: Any) -> Any:
        self._kept.append(value)
        return value

    def _follow_choice(self, name: str, given: Sequence[Any], found: Any) -> None:
        if name == "topk":
            numbers = self._keep(found)[1]
            self._chosen[id(self._keep(numbers))] = int(numbers.shape[-1])
        elif name in ("sort", "argsort"):  # each number once as well, and how many of them are used is to be seen
            self._chosen[id(self._keep(found if name == "argsort" else found[1]))] = 0
        elif name in _KEEP_CHOICE and isinstance(found, torch.Tensor):
            sizes = [self._chosen[id(value)] for value in given if id(value) in self._chosen]
            if sizes:
                self._chosen[id(self._keep(found))] = sizes[0]

    # --- masks to rows ---

    def thinned(self, mask: torch.Tensor) -> torch.Tensor:
        """The mask, for trying with fewer rows, or with others: what the example's own picks may be all, or nothing."""
        self.has_picked = True
        if self.masks == "own":
            return mask != 0
        if self.masks == "none":
            return torch.zeros_like(mask, dtype=torch.bool)
        keep = torch.arange(mask.numel(), device=mask.device).reshape(mask.shape) % _THINNED != 0
        is_free = self.masks == "spread" and id(mask) not in self._chosen  # no row has an expert twice
        return keep if is_free else (mask != 0) & keep

    def numbers(self, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What ``mask.nonzero(as_tuple=True)`` gives, for all rows."""
        count, origin = self._chosen.get(id(mask), 0), self._origin(mask)
        mask = self.thinned(mask)
        if self.is_picking:
            return mask.nonzero(as_tuple=True)
        axes = [axis for axis, size in enumerate(mask.shape) if isinstance(size, int) and size == count]
        if count and mask.ndim == 2 and len(axes) == 1:  # a row has at most one place among those that topk chose
            return self._first_numbers(origin, mask, axes[0])
        numbers = []
        for axis, size in enumerate(mask.shape):
            counted = torch.arange(size, device=mask.device).reshape([-1 if a == axis else 1 for a in range(mask.ndim)])
            numbers.append(counted.expand(mask.shape).reshape(-1))
        rows = Rows(origin, mask.reshape(-1), mask.ndim == 1, mask.ndim == 1)
        return tuple(self._numbered(one, rows) for one in numbers)

    def _first_numbers(self, origin: Any, mask: torch.Tensor, axis: int) -> tuple[torch.Tensor, ...]:
        other = 1 - axis
        places = mask.to(torch.int64).argmax(axis)
        counted = torch.arange(mask.shape[other], device=mask.device)
        hit = mask.any(axis)
        pair = (
            self._numbered(places, Rows(origin, hit, False, True)),
            self._numbered(counted, Rows(origin, hit, True, True)),
        )
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
        return replace(found[0], is_unique=found[0].is_unique or len(found) > 1)

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
        return stacked if rows is None else self._numbered(stacked, replace(rows, is_all=False, is_unique=False))

    def unbind(self, numbers: torch.Tensor, dim: int = 0) -> Any:
        """A loop over picked rows visits all; one over counts takes them as sizes."""
        if id(numbers) not in self._rows and are_counts(numbers):
            return self._counts.spread(numbers)
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
        return self._numbers[id(value)] if id(value) in self._numbers else self._counts.number(value)

    def equal(self, value: torch.Tensor, other: Any) -> Any:
        """``number == 3``."""
        number = self._numbers.get(id(value))
        return number == other if number is not None and isinstance(other, int) else NotImplemented

    def tolist(self, numbers: torch.Tensor) -> Any:
        """``numbers.tolist()``: all."""
        if id(numbers) not in self._rows and are_counts(numbers):
            return [self._counts.number(one) for one in self._counts.spread(numbers)]
        if id(numbers) not in self._rows or numbers.ndim != 1 or not isinstance(numbers.shape[0], int):
            return NotImplemented
        return self._visited(numbers)

    def _visited(self, numbers: torch.Tensor) -> list[int]:
        """The rows that a loop over `numbers` visits."""
        if self.masks == "none":
            return []
        return [number for number in range(numbers.shape[0]) if self.masks == "own" or number % _THINNED]

    def reshaped(self, numbers: torch.Tensor, *_: Any, **__: Any) -> Any:
        """Numbers of one axis without their last one, or as they are."""
        if id(numbers) in self._rows and numbers.ndim == 2 and numbers.shape[-1] == 1:
            return self._numbered(numbers[:, 0], self._rows[id(numbers)])
        if id(numbers) in self._rows and numbers.ndim == 1:
            return numbers
        return NotImplemented

    def any(self, mask: torch.Tensor, *rest: Any, **named: Any) -> Any:
        """``mask.any()``, on which code skips what it does for no row."""
        if rest or named:
            return NotImplemented
        found = self._keep(torch.any(self.thinned(mask)))
        if not self.is_picking:
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
        if type(key) is int and id(value) not in self._rows and are_counts(value):
            return self._counts.element(value, key)
        if id(key) in self._numbers:
            number = self._numbers[id(key)]
            picked = value.narrow(0, number, 1) if key.ndim else value[number]
            if id(value) in self._chosen:
                self._chosen[id(self._keep(picked))] = self._chosen[id(value)]
            return self._loosen(picked, self._masks_of(value))
        if _is_mask(key):
            mask, masks = self.thinned(key), self._masks_of(value) | {self._origin(key)}
            picked = value[mask] if self.is_picking else value.reshape(-1, *value.shape[mask.ndim :]).clone()
            return self._loosen(picked, masks)
        rows = self.rows_of(key)
        if rows is None or id(value) in self._rows:
            return NotImplemented
        plain, masks = key if isinstance(key, tuple) else (key,), self._masks_of(value) | {rows.origin}
        if rows.is_all and id(plain[-1]) in self._rows and all(part is None for part in plain[:-1]):
            return self._loosen(value[plain[:-1]].clone() if len(plain) > 1 else value.clone(), masks)
        return self._loosen(value[key], masks)

    def setitem(self, target: torch.Tensor, key: Any, value: Any) -> Any:
        """``x[rows] = y``, ``x[mask] = y``."""
        is_mask = _is_mask(key)
        if is_mask and not (isinstance(value, torch.Tensor) and value.ndim) and self.masks == "own":
            return NotImplemented  # one value for all needs no rows
        if is_mask:
            mask = self.thinned(key)
            self._write(target, value, self._origin(key))
            if self.is_picking or not isinstance(value, torch.Tensor):
                target[mask] = value
                return None
            new = value.reshape(target.shape) if value.ndim == target.ndim - mask.ndim + 1 else value
            target.copy_(torch.where(_beside(mask, target.ndim), new, target))
            return None
        rows = self.rows_of(key)
        if rows is None:
            return NotImplemented
        self._write(target, value, rows.origin)
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

    def _write(self, target: torch.Tensor, value: Any, origin: Any) -> None:
        """Rows are written back by their own mask; those of another mask stay what they are."""
        self._loosen(target, self._masks_of(target) | (self._masks_of(value) - {origin}))

    def index_add(self, target: torch.Tensor, dim: int, index: torch.Tensor, source: torch.Tensor, **named: Any) -> Any:
        """``out.index_add_(0, rows, y)``."""
        rows = self._rows.get(id(index))
        if rows is None or named:
            return NotImplemented
        self._write(target, source, rows.origin)
        around = [1] * source.ndim
        around[dim] = -1
        picked = torch.where(rows.mask.reshape(around), source, torch.zeros_like(source))
        return target.add_(picked) if rows.is_all else target.index_add_(dim, index, picked)

    def split(self, value: torch.Tensor, sizes: Any, dim: int = 0) -> Any:
        """``rows.split(counts)``: all rows for each part."""
        counts = self._counts.of(sizes) if dim in (0, -value.ndim) else None
        if counts is None:
            return NotImplemented
        self.has_picked = True
        if self.is_picking:
            return value.split_with_sizes(changed(counts, self.masks).tolist())
        masks = self._masks_of(value)
        return tuple(self._loosen(value.clone(), masks | {part(counts, place)}) for place in range(len(sizes)))

    def cat(self, values: Sequence[torch.Tensor], dim: int = 0, *, axis: int | None = None, **named: Any) -> Any:
        """``torch.cat(parts)``: of each row what its own part gives."""
        parts = [[mask for mask in self._masks_of(value) if mask[0] == "part"] for value in values]
        is_of_rows = not named and (dim if axis is None else axis) in (0, -values[0].ndim)
        found = self._counts.together(values, parts, self.masks) if is_of_rows else NotImplemented
        others = [mask for mask in self._masks_of(values) if mask[0] != "part"]
        return found if found is NotImplemented else self._loosen(found, frozenset(others))


_KEEP_CHOICE = frozenset(
    ("one_hot", "permute", "transpose", "t", "squeeze", "eq", "__eq__", "to", "bool", "contiguous", "__getitem__")
)

_ARE_VIEWS = frozenset(("__getitem__", "select", "squeeze", "unsqueeze", "view", "reshape", "flatten"))

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
    "split": AllRows.split,
    "split_with_sizes": AllRows.split,
    "cat": AllRows.cat,
    "concat": AllRows.cat,
    "concatenate": AllRows.cat,
}


def _is_mask(key: Any) -> bool:
    return isinstance(key, torch.Tensor) and key.dtype == torch.bool


def _beside(mask: torch.Tensor, ndim: int) -> torch.Tensor:
    """The mask with axes of one behind it, to meet values of `ndim` axes."""
    return mask.reshape(*mask.shape, *[1] * (ndim - mask.ndim))


def require_by_row(module: nn.Module, call: Call) -> None:
    """Raise ModelError unless all rows give what picked ones give, also of masks that pick others than here."""
    if not _is_by_row(module, call):
        raise ModelError("what the model computes from rows that a mask picks is not computed for each by itself")


def _is_by_row(module: nn.Module, call: Call) -> bool:
    for masks in get_args(Masks):
        found = []
        for is_picking in (True, False):
            mode = AllRows(is_tried=True, is_picking=is_picking, masks=masks)
            args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, (call.args, call.kwargs))
            try:
                with torch.no_grad(), mode:
                    outputs = module(*args, **kwargs)
            except Exception:  # the module's own code, in a way that it was not written for
                return False
            if not mode.has_picked or (not is_picking and mode.escapes(outputs)):
                return False
            found.append([leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)])
        if not agree(*found):
            return False
    return True


def agree(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> bool:
    """Whether tensors are the same but for rounding."""
    return len(found) == len(wanted) and all(
        a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-5, equal_nan=True)
        for a, b in zip(found, wanted, strict=True)
    )
