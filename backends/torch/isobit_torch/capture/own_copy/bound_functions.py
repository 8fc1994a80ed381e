"""Functions that lie in a copy of a module: what they have from around them becomes that of the copy.

copy.deepcopy takes functions over as they are, so that hooks, ``self.f = lambda x: self.layer(x)`` and a forward that
was wrapped from outside would mean the parts of the original.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial, update_wrapper
from types import CellType, FunctionType, MethodType
from typing import Any
from weakref import ref

_CONTAINERS = (list, tuple, set, dict)
_LEADING = (*_CONTAINERS, FunctionType, MethodType, partial, ref, CellType)
#: What cannot be changed in place, so that a copy of it is made once more.
_MADE_ANEW = (tuple, MethodType, partial)


def bind_functions(memo: dict[int, Any]) -> None:
    """Let the functions in all copies of a `memo` of copy.deepcopy mean copies, in place.

    Reached are closures, defaults, attributes of functions, methods, partials, weak references and plain containers.
    What a function has from a global name stays.
    """
    copies = [copied for key, copied in memo.items() if key not in (id(copied), id(memo))]
    binding = _Binding(memo, copies)
    for held in copies:
        for table in (held, getattr(held, "__dict__", None)):
            if isinstance(table, list | dict):
                places = list(table.items()) if isinstance(table, dict) else list(enumerate(table))
                for place, value in places:
                    bound = binding.bound(value)
                    if bound is not value:
                        table[place] = bound


class _Binding:
    def __init__(self, memo: dict[int, Any], copies: Iterable[Any]) -> None:
        self._memo = memo
        self._copies = {id(copied) for copied in copies if not isinstance(copied, _MADE_ANEW)}
        self._reaches: dict[int, bool] = {}
        self._bound: dict[int, Any] = {}
        self._kept: list[Any] = []  # an identity holds as long as its object lives

    def bound(self, value: Any) -> Any:
        """The `value` around copies; itself where it leads to nothing that was copied."""
        for known in (self._memo, self._bound):
            if id(value) in known:
                return known[id(value)]
        if not isinstance(value, _LEADING) or id(value) in self._copies or not self._leads_to_copied(value):
            return value
        self._kept.append(value)
        self._bound[id(value)] = made = self._made(value)
        return made

    def _made(self, value: Any) -> Any:
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, MethodType):
            return MethodType(self.bound(value.__func__), self.bound(value.__self__))
        if isinstance(value, partial):
            keywords = {key: self.bound(item) for key, item in value.keywords.items()}
            return partial(self.bound(value.func), *map(self.bound, value.args), **keywords)
        if isinstance(value, ref):
            return ref(self.bound(value()))
        if isinstance(value, list):
            items: list[Any] = []
            self._bound[id(value)] = items  # before it is filled: it may hold itself
            items += map(self.bound, value)
            return items
        if isinstance(value, dict):
            table: dict[Any, Any] = {}
            self._bound[id(value)] = table
            table |= {key: self.bound(item) for key, item in value.items()}
            return table
        return type(value)(map(self.bound, value))

    def _function(self, function: FunctionType) -> FunctionType:
        cells = tuple(self._cell(cell) for cell in function.__closure__ or ())
        made = FunctionType(function.__code__, function.__globals__, function.__name__, None, cells)
        self._bound[id(function)] = update_wrapper(made, function)  # before it is filled: it may call itself
        del made.__dict__["__wrapped__"]
        for cell, original in zip(cells, function.__closure__ or (), strict=True):
            if cell is not original:
                cell.cell_contents = self.bound(original.cell_contents)
        made.__defaults__ = self.bound(function.__defaults__)
        made.__kwdefaults__ = self.bound(function.__kwdefaults__)
        for name, value in function.__dict__.items():
            made.__dict__[name] = self.bound(value)
        return made

    def _cell(self, cell: CellType) -> CellType:
        """One for all functions that share it, as they would a ``nonlocal`` name."""
        if id(cell) not in self._bound:
            self._kept.append(cell)
            self._bound[id(cell)] = CellType() if self._leads_to_copied(cell) else cell
        made: CellType = self._bound[id(cell)]
        return made

    def _leads_to_copied(self, value: Any) -> bool:
        """Whether anything behind `value` was copied; values may lead to each other in circles."""
        seen: dict[int, Any] = {}
        ahead = [value]
        while ahead:
            found = ahead.pop()
            if id(found) in self._memo or self._reaches.get(id(found)):
                self._reaches[id(value)] = True
                self._kept.append(value)
                return True
            if id(found) not in seen and id(found) not in self._reaches and id(found) not in self._copies:
                seen[id(found)] = found
                ahead += _held(found)
        self._reaches |= dict.fromkeys(seen, False)
        self._kept.append(seen)
        return False


def _held(value: Any) -> list[Any]:
    if isinstance(value, FunctionType):
        tables = (value.__kwdefaults__ or {}, value.__dict__)
        return [*(value.__closure__ or ()), *(value.__defaults__ or ()), *(x for t in tables for x in t.values())]
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, ref):
        return [value()]
    if isinstance(value, CellType):
        try:
            return [value.cell_contents]
        except ValueError:  # a name that was never given a value
            return []
    if type(value) in _CONTAINERS:
        return [*(value.values() if isinstance(value, dict) else value)]
    return []
