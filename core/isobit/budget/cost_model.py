"""What every node of a neutral graph costs for one sample. Open sizes count as 1, and what is computed once, once."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from isobit.budget.cost import Cost
from isobit.data import numpy_type
from isobit.graph.graph import Graph, Node
from isobit.graph.multiply_adds import multiply_adds
from isobit.graph.ops import operand
from isobit.targets.costs import Costs


def layer_costs(graph: Graph, table: Costs | None = None) -> dict[str, Cost]:
    """The cost of each node by name, in execution order; a constant that several read is counted at the first.

    Means and variances of batch norms are stored, and are no parameters.

    `table` gives milliseconds on one processor; without it they are 0.
    """
    counted: set[str] = set()
    costs = {}
    for node in graph.nodes:
        parameters = stored = 0.0
        for index, name in enumerate(node.inputs):
            if name is None or name not in graph.weights:
                continue
            info = graph.weights[name]
            key = info.source or name
            if key not in counted and info.is_float:
                counted.add(key)
                role = operand(node.op, index)
                is_observed = role is not None and role.role in ("mean", "variance")
                parameters += 0 if is_observed else prod(info.shape)
                stored += prod(info.shape) * element_bytes(info.dtype)
        outputs = float(sum(elements(graph, name) for name in node.outputs))
        macs = float(multiply_adds(graph, node, of_one=True) or 0)
        costs[node.name] = Cost(macs, parameters, stored, outputs, milliseconds(graph, node, macs, table))
    return costs


def weighted_cost(
    op: str,
    weights: int,
    biases: int,
    times: float,
    inputs: float,
    outputs: float,
    table: Costs | None = None,
    size: float = 4.0,
) -> Cost:
    """The cost of a layer that is not there yet: weights, each used `times` a sample, elements of input and output."""
    macs = float(weights * times)
    spent = 0.0 if table is None else _of_layer(op, macs, inputs + outputs, table)
    return Cost(macs, float(weights + biases), (weights + biases) * size, float(outputs), spent)


def times(graph: Graph, node: Node) -> float:
    """How often a sample uses each weight of a Conv, ConvTranspose or Linear: positions of the output, or of the input.

    A transposed convolution multiplies all of its weights at every position of its input.
    """
    name = node.inputs[0] if node.op == "ConvTranspose" else node.outputs[0]
    sizes = _sizes(graph, name)
    return float(prod(sizes[:-1] if node.op == "Linear" else sizes[1:]))


def elements(graph: Graph, tensor: str | None) -> float:
    """Elements of a tensor a sample."""
    return float(prod(_sizes(graph, tensor)))


def milliseconds(graph: Graph, node: Node, macs: float, table: Costs | None) -> float:
    """Time by the table: of products by their multiply-accumulates and elements, of all else by the largest tensor."""
    if table is None:
        return 0.0
    if node.op in table.multiply:
        tensors = [name for name in (*node.inputs, *node.outputs) if name in graph.tensors]
        return _of_layer(node.op, macs, sum(elements(graph, name) for name in tensors), table)
    largest = max((elements(graph, name) for name in (*node.inputs, *node.outputs) if name in graph.tensors), default=0)
    return float(table.floats.get(node.op, 0.0) * largest * 1e-6)


def _of_layer(op: str, macs: float, moved: float, table: Costs) -> float:
    """Milliseconds of a product that reads and writes so many elements beside its weights."""
    return (macs * table.multiply[op] + moved * table.layer_element) * 1e-6 if op in table.multiply else 0.0


def open_inputs(graph: Graph) -> list[str]:
    """Inputs with a size, other than that of the batch, that the model leaves open: it counts as 1 in every cost."""
    shapes = {name: graph.tensors[name].shape or () for name in graph.inputs if name in graph.tensors}
    return [name for name, shape in shapes.items() if any(not isinstance(size, int) for size in shape[1:])]


def element_bytes(dtype: str) -> float:
    """Bytes of one element of a type; those of float32 where NumPy has no such type."""
    if dtype == "bfloat16":
        return 2.0
    known = numpy_type(dtype)
    return 4.0 if known is None else float(known.itemsize)


def _sizes(graph: Graph, tensor: str | None) -> Sequence[int]:
    """The sizes of a tensor without the batch, which is axis 0."""
    info = graph.tensors.get(tensor or "")
    shape = () if info is None or info.shape is None else info.shape
    return [n if isinstance(n, int) else 1 for n in shape[1:]]
