"""Comparing two neutral graphs by structure: ops, attributes in float32, edges and weight content, never by names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.graph.graph import Graph, Node

Weights = Callable[[str], NDArray[Any]]


def signatures(graph: Graph, weights: Weights) -> dict[str, str]:
    """A structural hash of every tensor: equal hashes mean equal computation from the model's inputs."""
    tensors: dict[str, str] = {name: _hash(f"input {index}") for index, name in enumerate(graph.inputs)}
    content = {name: _weight_hash(weights(name)) for name in graph.weights}
    for node in graph.nodes:
        for index, tensor in enumerate(node.outputs):
            tensors[tensor] = _hash(f"{_node_signature(node, tensors, content)}:{index}")
    return tensors


def correspondence(a: Graph, b: Graph, weights_a: Weights, weights_b: Weights) -> dict[str, str]:
    """Tensors of `a` to tensors of `b` that compute the same; ambiguous ones in execution order."""
    pool: dict[str, list[str]] = {}
    for name, signature in signatures(b, weights_b).items():
        pool.setdefault(signature, []).append(name)
    matched = {}
    for name, signature in signatures(a, weights_a).items():
        candidates = pool.get(signature)
        if candidates:
            matched[name] = candidates.pop(0)
    return matched


def differences(a: Graph, b: Graph, weights_a: Weights, weights_b: Weights) -> list[str]:
    """What differs between two graphs, in words; empty when they are isomorphic."""
    problems = []
    if len(a.inputs) != len(b.inputs):
        problems.append(f"{len(a.inputs)} inputs against {len(b.inputs)}")
    signs_a, signs_b = signatures(a, weights_a), signatures(b, weights_b)
    for graph, signs, other_signs in ((a, signs_a, signs_b), (b, signs_b, signs_a)):
        signs_elsewhere = set(other_signs.values())
        for node in graph.nodes:
            if any(signs[tensor] not in signs_elsewhere for tensor in node.outputs):
                problems.append(f"{node!r} {dict(node.attributes)} is in one graph only")
                break  # everything after it differs too
    if [signs_a[t] for t in a.outputs.values()] != [signs_b[t] for t in b.outputs.values()] and not problems:
        problems.append("the outputs are other tensors")
    return problems


def _node_signature(node: Node, tensors: Mapping[str, str], weights: Mapping[str, str]) -> str:
    inputs = ["-" if name is None else tensors.get(name) or weights.get(name, "?") for name in node.inputs]
    while inputs and inputs[-1] == "-":
        inputs.pop()
    attributes = ",".join(f"{key}={attribute_text(node.attributes[key])}" for key in sorted(node.attributes))
    return f"{node.op}({','.join(inputs)};{attributes})"


def attribute_text(value: Any) -> str:
    """An attribute as a text that is equal in every framework: numbers in float32, sequences as lists."""
    if isinstance(value, bool | int | np.integer):
        return repr(float(value))
    if isinstance(value, float | np.floating):
        return repr(float(np.float32(value)))
    if isinstance(value, tuple | list):
        return "[" + ",".join(attribute_text(v) for v in value) + "]"
    if isinstance(value, np.ndarray):
        return _weight_hash(value)
    return repr(value)


def _weight_hash(array: NDArray[Any]) -> str:
    contiguous = np.ascontiguousarray(array)
    return _hash(f"{contiguous.shape}{contiguous.dtype.kind}", contiguous.tobytes())


def _hash(text: str, data: bytes = b"") -> str:
    return hashlib.blake2b(text.encode() + data, digest_size=16).hexdigest()
