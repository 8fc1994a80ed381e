"""Constants of two models by what they hold: equal bits first, then equal up to the rounding of a fold."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.graph.graph import Graph

Array = NDArray[Any]

#: Largest difference of two constants that count as one, relative to the largest magnitude: a few float32 roundings.
TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Side:
    """A graph with its constants in canonical layout."""

    graph: Graph
    read: Callable[[str], Array]


def content_classes(source: Side, target: Side) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """The class of each constant of both sides: constants of one class hold the same, whatever their names.

    Whole numbers are compared as int64, reals as float32, vectors whatever axis they lie along. A constant of the
    target that has no equal in the source takes the class of the one constant of its shape that is within `TOLERANCE`.
    """
    in_source, in_target = (
        {name: _digest(side.read(name)) for name in side.graph.weights} for side in (source, target)
    )
    source_classes, target_classes = set(in_source.values()), set(in_target.values())
    by_shape = _by_shape(source, [name for name, digest in in_source.items() if digest not in target_classes])
    for name in [name for name, digest in in_target.items() if digest not in source_classes]:
        value = _plain(target.read(name))
        digests = {in_source[n] for n in by_shape.get(value.shape, ()) if is_close(_plain(source.read(n)), value)}
        if len(digests) == 1:
            in_target[name] = digests.pop()
    return in_source, in_target


def is_close(a: Array, b: Array, tolerance: float = TOLERANCE) -> bool:
    """Whether two constants of reals differ by no more than `tolerance` of the largest magnitude."""
    if a.shape != b.shape or a.dtype.kind != "f" or b.dtype.kind != "f":
        return False
    limit = tolerance * float(np.abs(a).max(initial=0.0))
    return bool(np.all(np.abs(a.astype(np.float64) - b) <= limit))


def _by_shape(side: Side, names: Iterable[str]) -> dict[tuple[int, ...], list[str]]:
    shapes: dict[tuple[int, ...], list[str]] = {}
    for name in names:
        shapes.setdefault(_plain(side.read(name)).shape, []).append(name)
    return shapes


def _digest(value: Array) -> str:
    plain = _plain(value)
    text = f"{plain.shape}{plain.dtype.kind}".encode()
    return hashlib.blake2b(text + plain.tobytes(), digest_size=16).hexdigest()


def _plain(value: Array) -> Array:
    """One type for reals and one for whole numbers; a constant with a single axis longer than 1 as a vector."""
    plain: Array = np.asarray(value, np.dtype("float32" if value.dtype.kind == "f" else "int64"), order="C")
    return plain.reshape(-1) if sum(size != 1 for size in plain.shape) <= 1 else plain
