"""Which array of a nested batch goes to which input: by the keys that lead to it, and in order where there are none."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from isobit.data.arrays import is_array

#: The keys and indices that lead to a value of a batch.
Path = tuple[str | int, ...]


#: What a container in order has, be it a Sequence or not: a cache of keys and values by layer.
_LISTED = ("__len__", "__getitem__", "__iter__")


def assign_leaves(raw: Any, names: Sequence[str], *, skip_texts: bool) -> tuple[dict[str, Any], list[str], bool]:
    """The values of `names`, what was left over (in words), and whether anything had to be told by order.

    An input of nested arguments is named after the keys that lead to it: ``state_0``, ``batch_dense``.
    """
    leaves = list(_leaves(raw, ()))
    assigned: dict[str, Any] = {}
    left: list[str] = []
    unnamed: list[tuple[Path, Any]] = []
    for path, value in leaves:
        name = _name_of(path, names, assigned)
        if name is not None:
            assigned[name] = value
        elif value is None:
            continue
        elif any(isinstance(key, str) for key in path) or (skip_texts and is_text(value)):
            left.append("_".join(map(str, path)) if not isinstance(path[0], int) else _place(path))
        else:
            unnamed.append((path, value))
    missing = [name for name in names if name not in assigned]
    in_order = bool(unnamed and missing)
    assigned.update(zip(missing, (value for _, value in unnamed), strict=False))
    left += [_place(path) for path, _ in unnamed[len(missing) :]]
    return assigned, left, in_order


def _name_of(path: Path, names: Sequence[str], taken: Mapping[str, Any]) -> str | None:
    """The input that a path of keys names; indices in front of the first key say nothing."""
    first = next((i for i, key in enumerate(path) if isinstance(key, str)), None)
    if first is None:
        return None
    text = "_".join(map(str, path[first:]))
    if text in names and text not in taken:
        return text
    ends = [name for name in names if name.endswith(f"_{text}") and name not in taken]
    return ends[0] if len(ends) == 1 else None


def _place(path: Path) -> str:
    return "element " + ".".join(str(key) for key in path)


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    children = _children(value)
    if children is None or (path and not _holds_array(value)):
        yield path, value
        return
    for key, child in children:
        yield from _leaves(child, (*path, key))


def _children(value: Any) -> list[tuple[str | int, Any]] | None:
    """The parts of a container by key or index; None for a value."""
    if is_array(value) or isinstance(value, str | bytes):
        return None
    if isinstance(value, Mapping) or (hasattr(value, "keys") and hasattr(value, "__getitem__")):
        return [(str(key), value[key]) for key in value.keys()]  # noqa: SIM118 (BatchEncoding iterates values)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    if hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    is_listed = isinstance(value, Sequence) or all(hasattr(value, name) for name in _LISTED)
    return list(enumerate(value)) if is_listed else None


def _holds_array(value: Any) -> bool:
    """Whether an array lies anywhere inside: rows of plain numbers are an array themselves."""
    children = _children(value)
    if children is None:
        return is_array(value)
    return any(_holds_array(child) for _, child in children)


def is_text(value: Any) -> bool:
    """Whether a value is a text, or a list of texts."""
    return isinstance(value, str | bytes) or (
        isinstance(value, list | tuple) and bool(value) and all(isinstance(item, str | bytes) for item in value)
    )
