"""The branch of an If that constants, sizes or settings decide takes the place of the If, so that it is quantized.

What follows from constants alone is decided for good. A condition on sizes and on inputs that are no signal (a sample
rate, a flag) is decided by an example where there is one; the model then holds for data of that kind. A condition on
the values of the signal is never decided: the next batch may take the other branch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import onnx_ir as ir
import onnx_ir.passes.common as passes

from isobit.graph.free_name import take_name
from isobit_onnx.read.constant_expressions import constant_value
from isobit_onnx.read.unused_nodes import remove_unused

#: Computes the outputs of a model, conditions, for an example; without those that it cannot compute.
Conditions = Callable[[ir.Model], Mapping[str, bool]]

#: Where a model says what was taken, also in files written of it.
METADATA = "isobit.branches"

_SIZES = frozenset({"Shape", "Size"})


def take_branches(model: ir.Model, conditions: Conditions | None, infer_shapes: Callable[[ir.Model], object]) -> None:
    """Put decided branches in the place of their Ifs, in place, those inside them too."""
    taken: list[str] = []
    while True:
        nodes = [node for node in model.graph if node.op_type == "If" and not node.domain]
        decided = {node: value for node in nodes if (value := _constant_condition(node)) is not None}
        if not decided and conditions is not None:
            decided = _by_example(model, nodes, conditions)
            taken += [
                f"{node.name or node.outputs[0].name!r} ({'then' if value else 'else'})"
                for node, value in decided.items()
            ]
        if not decided:
            break
        for node, value in decided.items():
            _inline(model.graph, node, node.attributes[_branch(value)].as_graph())
            _forget(node.attributes[_branch(not value)].as_graph())
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        infer_shapes(model)
    if taken:
        model.metadata_props[METADATA] = (
            f"If {', '.join(taken)}: the example takes this branch, which alone the model holds; data that take "
            "another are refused"
        )


def lift_weights(model: ir.Model) -> None:
    """Take the matrices of floats out of bodies, in place, so that they are constants of the network like any other.

    Smaller ones stay, which shape inference of a body may look at.
    """
    graph = model.graph
    taken = {value.name for value in graph.inputs} | set(graph.initializers)
    taken |= {output.name for node in graph.all_nodes() for output in node.outputs}
    for body in graph.subgraphs():
        for value in list(body.initializers.values()):
            tensor = value.const_value
            if tensor is None or len(tensor.shape) < 2 or not tensor.dtype.is_floating_point():
                continue
            if value.is_graph_input() or value.is_graph_output():
                continue
            body.initializers.pop(value.name or "")
            _rename(value, taken)
            graph.register_initializer(value)


def depends_on_signal(value: ir.Value) -> bool:
    """Whether a condition follows from the values of a signal: real numbers of more than one axis or of open size."""
    return any(is_signal(source) for source in _sources(value))


def _branch(value: bool) -> str:
    return "then_branch" if value else "else_branch"


def _constant_condition(node: ir.Node) -> bool | None:
    condition = node.inputs[0]
    array = constant_value(condition) if condition is not None else None
    return bool(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def _by_example(model: ir.Model, nodes: Sequence[ir.Node], conditions: Conditions) -> dict[ir.Node, bool]:
    """The Ifs whose conditions an example decides. An If that depends on another waits for it."""
    asked = {
        node: value.name
        for node in nodes
        if (value := node.inputs[0]) is not None and value.name and not depends_on_signal(value)
    }
    if not asked:
        return {}
    cut = model.clone()
    values = ir.convenience.create_value_mapping(cut.graph)
    cut.graph.outputs[:] = [values[name] for name in dict.fromkeys(asked.values())]
    remove_unused(cut)
    found = conditions(cut)
    return {node: found[name] for node, name in asked.items() if name in found}


def _sources(value: ir.Value) -> Iterator[ir.Value]:
    """The graph inputs, and results of bodies, that a value is computed from, but for sizes."""
    seen: set[ir.Value] = set()
    waiting = [value]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        node = current.producer()
        if node is None:
            if current.is_graph_input():
                yield current
        elif any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            yield current
        elif node.op_type not in _SIZES:
            waiting += [operand for operand in node.inputs if operand is not None]


def is_signal(source: ir.Value) -> bool:
    """Whether an input, or a result of a body, holds what varies from batch to batch, not a setting or indices."""
    if source.producer() is not None:  # of an If or a Loop: what it reads is not looked through
        return True
    is_real = source.dtype is None or source.dtype.is_floating_point()
    sizes = list(source.shape) if source.shape is not None else [None]
    return is_real and not all(size == 1 for size in sizes)


def _inline(graph: ir.Graph, node: ir.Node, body: ir.Graph) -> None:
    """Move the nodes of a body to the place of its If."""
    taken = {value.name for value in graph.inputs} | set(graph.initializers)
    taken |= {output.name for other in graph.all_nodes() if other.graph is not body for output in other.outputs}
    nodes, results, constants = list(body), list(body.outputs), list(body.initializers.values())
    body.outputs.clear()
    body.initializers.clear()
    body.remove(nodes)
    for value in (*constants, *(output for inner in nodes for output in inner.outputs)):
        _rename(value, taken)
    for value in constants:
        graph.register_initializer(value)
    used: set[ir.Value] = set()
    for index, result in enumerate(results):
        if result in used or result.producer() not in nodes:
            copy = ir.Node("", "Identity", [result], name=f"{node.name or node.outputs[0].name}/result{index}")
            copy.outputs[0].shape, copy.outputs[0].type = result.shape, result.type
            nodes.append(copy)
            result = results[index] = copy.outputs[0]
        used.add(result)
    for old, new in zip(node.outputs, results, strict=True):
        old.shape, old.type = new.shape or old.shape, new.type or old.type
    olds = list(node.outputs)
    graph.insert_before(node, nodes)
    ir.convenience.replace_nodes_and_values(graph, node, [node], [], olds, results)


def _forget(body: ir.Graph) -> None:
    """Let nothing in a body that is left out count as a reader of what is outside."""
    for node in ir.traversal.RecursiveGraphIterator(body):
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)


def _rename(value: ir.Value, taken: set[str | None]) -> None:
    if value.name:  # an output that is left out has none
        value.name = take_name(value.name, taken)
