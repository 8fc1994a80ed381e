"""What a float model was: a hash of each weight and of the graph's structure, to recognise it again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.errors import ModelError
from isobit.graph.graph import Graph, Node

Fingerprint = Mapping[str, str]

_STRUCTURE = "(structure)"


def fingerprint(
    graph: Graph, read: Callable[[str], NDArray[Any]], replaced: Mapping[str, NDArray[Any] | None] | None = None
) -> dict[str, str]:
    """Hashes by weight name, and one of ops, names, edges and attributes.

    `replaced` are values that count in place of those of the graph; a constant of None does not count at all.
    """
    replaced = replaced or {}
    added = {name for name, value in replaced.items() if value is None}
    structure = [(n.name, n.op, _inputs(n, added), n.outputs, sorted(n.attributes.items())) for n in graph.nodes]
    hashes = {_STRUCTURE: _hash(repr(structure).encode())}
    for name in graph.weights:
        if name in added:
            continue
        value = replaced.get(name)
        array = read(name) if value is None else value
        hashes[name] = _hash(f"{array.shape}{array.dtype}".encode(), _bytes(array))
    return hashes


def of_arrays(arrays: Mapping[str, NDArray[Any]]) -> str:
    """One hash of arrays by name, such as a batch: of their shapes, types and values."""
    return digest(
        {name: _hash(f"{array.shape}{array.dtype}".encode(), _bytes(array)) for name, array in arrays.items()}
    )


def digest(hashes: Mapping[str, str]) -> str:
    """One hash of several by name."""
    return hashlib.blake2b(json.dumps(hashes, sort_keys=True).encode(), digest_size=16).hexdigest()


def _inputs(node: Node, added: Collection[str]) -> tuple[str | None, ...]:
    """What a node reads, without constants that were added and without what is left out at the end."""
    names = [None if name in added else name for name in node.inputs]
    while names and names[-1] is None:
        names.pop()
    return tuple(names)


def check_fingerprint(saved: Fingerprint, current: Fingerprint, where: str) -> None:
    """Raise ModelError that says what of the model differs from the saved one."""
    for name in saved.keys() | current.keys():
        if name not in current or name not in saved:
            side = "is missing in the model" if name not in current else "is new in the model"
            raise ModelError(f"{where} was made from another model: weight {name!r} {side}")
    if saved[_STRUCTURE] != current[_STRUCTURE]:
        raise ModelError(f"{where} was made from another model: its graph has other nodes, names or attributes")
    changed = [name for name in saved if saved[name] != current[name]]
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise ModelError(f"{where} was made from a model with other weights: {changed[0]!r}{more} differ(s)")


def _bytes(array: NDArray[Any]) -> bytes | memoryview:
    """What an array holds; text by its characters, for its elements are but addresses."""
    if array.dtype.hasobject:
        return repr(array.tolist()).encode()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _hash(*parts: bytes | memoryview) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
