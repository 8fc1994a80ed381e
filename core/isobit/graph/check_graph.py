"""Whether a neutral graph is sound: what every pass and every edit must leave behind, checked in tests.

`ISOBIT_CHECK=1` in the environment checks it after every canonical pass and every edit; otherwise nothing is looked at.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from functools import cache

import numpy as np

from isobit.errors import ModelError
from isobit.graph.graph import Graph, Node, Shape, WeightInfo
from isobit.graph.shape_inference import ShapeError, infer, infer_dtype
from isobit.graph.sites import Input, Site, Tensor, Weight


@cache
def is_checking() -> bool:
    """Whether ``ISOBIT_CHECK`` asks for checks; the environment is read once."""
    return os.environ.get("ISOBIT_CHECK", "") not in ("", "0")


def check_graph(graph: Graph, after: str = "") -> None:
    """Raise ModelError, naming the node, where a canonical graph contradicts itself; `after` says what made it.

    Beyond `check_structure`: every site is found, and shapes and element types are those that follow from the nodes, as
    far as rules are known.
    """
    check_structure(graph, after)
    for site in _sites(graph):
        if not graph.has_site(site):
            raise _fault(f"site {str(site)!r} cannot be found in the graph", after)
    for node in graph.nodes:
        _check_shape(graph, node, after)
        _check_dtype(graph, node, after)


def check_structure(graph: Graph, after: str = "") -> None:
    """Raise ModelError where names are not unique, nodes are out of order, or something named does not exist."""
    _check_names(graph, after)
    exists = {*graph.inputs, *graph.weights}
    for node in graph.nodes:
        for index, name in enumerate(node.inputs):
            if name is not None and name not in exists:
                late = graph.producer(name)
                why = f"which {_named(late)} makes only later" if late else "which nothing makes"
                raise _fault(f"{_named(node)} reads {name!r} at input {index}, {why}", after)
        exists.update(node.outputs)
    for output, tensor in graph.outputs.items():
        if tensor not in graph.tensors:
            raise _fault(f"output {output!r} is {tensor!r}, which is no tensor of the graph", after)
    for name, info in graph.weights.items():
        _check_constant(name, info, after)
    for name, tensor_info in graph.tensors.items():
        rank, axis = tensor_info.rank, tensor_info.channel_axis
        if axis is not None and not (rank is not None and 0 <= axis < rank):
            raise _fault(f"{_maker(graph, name)}: channel axis {axis} of {name!r} is none of its {rank} axes", after)


def _check_names(graph: Graph, after: str) -> None:
    nodes: set[str] = set()
    tensors = set(graph.inputs)
    if len(tensors) != len(graph.inputs):
        raise _fault(f"two inputs have one name: {', '.join(graph.inputs)}", after)
    for node in graph.nodes:
        if node.name in nodes:
            raise _fault(f"two nodes are named {node.name!r}, the second is {_named(node)}", after)
        nodes.add(node.name)
        for name in node.outputs:
            if name in tensors:
                raise _fault(f"{_named(node)} makes {name!r}, which exists before it", after)
            tensors.add(name)
    for name in tensors:
        if name not in graph.tensors:
            raise _fault(f"{_maker(graph, name)}: the graph says nothing of tensor {name!r}", after)
        if name in graph.weights:
            raise _fault(f"{_maker(graph, name)}: {name!r} is a tensor and a constant", after)
    for name in graph.tensors:
        if name not in tensors:
            raise _fault(f"tensor {name!r} is no input and no node makes it", after)


def _check_constant(name: str, info: WeightInfo, after: str) -> None:
    value = info.value
    if value is None:
        return
    if value.shape != info.shape:
        raise _fault(f"constant {name!r} is said to be {info.shape} and its value is {value.shape}", after)
    if info.magnitude is not None and value.size and value.dtype.kind == "f":
        largest = float(np.abs(value).max())
        # NumPy's isclose takes longer for one number than all other checks of a small graph together.
        is_close = math.isclose(largest, info.magnitude, rel_tol=1e-6, abs_tol=1e-8)
        if not (is_close or (math.isnan(largest) and math.isnan(info.magnitude))):
            raise _fault(f"constant {name!r} is said to reach {info.magnitude} and reaches {largest}", after)


def _check_shape(graph: Graph, node: Node, after: str) -> None:
    shapes = {name: graph.tensors[name].shape if name in graph.tensors else graph.weights[name].shape
              for name in node.inputs if name is not None}  # fmt: skip
    constants = {i: graph.weights[name].shape for i, name in enumerate(node.inputs) if name in graph.weights and name}
    declared = graph.tensors[node.outputs[0]].shape
    try:
        shape = infer(node, [shapes[name] for name in node.inputs if name is not None], constants, declared)
    except ShapeError as mismatch:
        raise _fault(f"{_named(node)}: {mismatch}", after) from mismatch
    if not _agree(shape, declared):
        raise _fault(f"{_named(node)}: {node.outputs[0]!r} is said to be {declared}, and {shape} follows", after)


def _agree(first: Shape | None, second: Shape | None) -> bool:
    """Whether two shapes have equal ranks and numbers; a symbol or unknown dimension agrees with anything.

    Axes of size 1 in front of one of them are of no account: what reads it broadcasts, so a backend may leave them out.
    """
    if first is None or second is None:
        return True
    more = len(first) - len(second)
    longer, shorter = (first, second) if more > 0 else (second, first)
    if any(size != 1 for size in longer[: abs(more)]):
        return False
    first, second = longer[abs(more) :], shorter
    return all(a == b for a, b in zip(first, second, strict=True) if isinstance(a, int) and isinstance(b, int))


def _check_dtype(graph: Graph, node: Node, after: str) -> None:
    inputs = [None if name is None else (graph.tensors.get(name) or graph.weights[name]).dtype for name in node.inputs]
    dtype, declared = infer_dtype(node, inputs), graph.tensors[node.outputs[0]].dtype
    if dtype is not None and "unknown" not in (dtype, declared) and dtype != declared:
        raise _fault(f"{_named(node)}: {node.outputs[0]!r} is said to be {declared}, and {dtype} follows", after)


def _sites(graph: Graph) -> Iterable[Site]:
    """Every place of the graph where a quantizer can sit."""
    yield from (Tensor(name) for name in graph.tensors)
    yield from (Weight(name) for name in graph.weights)
    for node in graph.nodes:
        yield from (Input(node.name, index) for index, name in enumerate(node.inputs) if name is not None)


def _named(node: Node) -> str:
    return f"node {node.name!r} ({node.op})"


def _maker(graph: Graph, tensor: str) -> str:
    node = graph.producer(tensor)
    return f"input {tensor!r}" if node is None else _named(node)


def _fault(what: str, after: str) -> ModelError:
    when = f" after {after}" if after else ""
    return ModelError(f"the graph contradicts itself{when}: {what}; print the graph to see the nodes around it")
