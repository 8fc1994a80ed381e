"""Weights of recurrent layers that an exporter puts together: computed ahead, under the names that they came from.

Frameworks order a layer's gates in other ways than ONNX, so exporters cut a parameter into slices and join them anew;
torch.onnx.export writes that out as operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from isobit.graph.ops import RECURRENT
from isobit_onnx.read.initializers import add_initializer, describe

_WEIGHTS, _BIAS = (1, 2), 3

#: What weights are put together with.
_JOINING = frozenset("Slice Concat Unsqueeze Squeeze Reshape Transpose Gather Split Identity Cast".split())


@dataclass(frozen=True, eq=False)
class _Slot:
    """Input `index` of `node`, where a weight is wanted; `flat` asks for half of a bias, (1, gates * hidden)."""

    node: ir.Node
    index: int
    flat: bool = False


def joins_weights(node: ir.Node) -> bool:
    """Whether the results of a node only go into weights of recurrent layers."""
    uses = [use for output in node.outputs for use in output.uses()]
    return node.op_type in _JOINING and bool(uses) and all(_is_weight(use) or joins_weights(use.node) for use in uses)


def _is_weight(use: Any) -> bool:
    return use.node.op_type in RECURRENT and not use.node.domain and use.idx in (*_WEIGHTS, _BIAS)


def join_weights(model: ir.Model) -> None:
    """Compute what is put together from constants, in place.

    A weight made of one constant that nothing else reads takes its name; the two halves of a bias stay two constants.
    """
    groups: dict[str, list[tuple[_Slot, NDArray[Any]]]] = {}
    for slot in [slot for node in list(model.graph) for slot in _slots(model.graph, node)]:
        value = slot.node.inputs[slot.index]
        array = _evaluate(value)
        if value is None or array is None:
            continue
        array = array.reshape(1, -1) if slot.flat else array
        if not value.is_initializer() or list(value.shape or ()) != list(array.shape):
            sources = _sources(value)
            source = sources.pop() if len(sources) == 1 else value.name
            groups.setdefault(source or "", []).append((slot, array))
    for source, slots in groups.items():
        _write(model.graph, source, slots)


def _slots(graph: ir.Graph, node: ir.Node) -> list[_Slot]:
    if node.op_type not in RECURRENT or node.domain:
        return []
    weights = [_Slot(node, index) for index in _WEIGHTS]
    bias = node.inputs[_BIAS] if len(node.inputs) > _BIAS else None
    concat = bias.producer() if bias is not None else None
    while concat is not None and concat.op_type in ("Unsqueeze", "Reshape") and concat.inputs[0] is not None:
        concat = concat.inputs[0].producer()
    if bias is None or concat is None or concat.op_type != "Concat" or len(concat.inputs) != 2:
        return [*weights, _Slot(node, _BIAS)] if bias is not None else weights
    sizes = {None if part is None else part.size for part in map(_evaluate, concat.inputs)}
    if None in sizes or len(sizes) != 1:
        return [*weights, _Slot(node, _BIAS)]
    halves = ir.Node("", "Concat", concat.inputs, [ir.AttrInt64("axis", 1)], name=f"{bias.name}_halves")
    halves.outputs[0].name, halves.outputs[0].type = f"{bias.name}_halves", bias.type
    graph.insert_before(node, [halves])
    node.replace_input_with(_BIAS, halves.outputs[0])
    return [*weights, _Slot(halves, 0, flat=True), _Slot(halves, 1, flat=True)]


def _evaluate(value: ir.Value | None) -> NDArray[Any] | None:
    """The value of what is put together from constants alone."""
    if value is None:
        return None
    if value.is_initializer():
        return None if value.const_value is None else value.const_value.numpy()
    node = value.producer()
    if node is None or node.op_type not in _JOINING or node.domain:
        return None
    inputs = {operand.name or "": _evaluate(operand) for operand in node.inputs if operand is not None}
    if any(array is None for array in inputs.values()):
        return None
    results: Any = ReferenceEvaluator(ir.to_proto(node)).run(None, inputs)
    return np.asarray(results[value.index() or 0])


def _sources(value: ir.Value) -> set[str]:
    """The float constants that a value is put together from."""
    node = value.producer()
    if node is None:
        return {value.name or ""} if value.dtype is not None and value.dtype.is_floating_point() else set()
    return {name for operand in node.inputs if operand is not None for name in _sources(operand)}


def _write(graph: ir.Graph, source: str, slots: list[tuple[_Slot, NDArray[Any]]]) -> None:
    """One constant for all slots where they hold the same, else one for each."""
    first = slots[0][1]
    old = graph.initializers.get(source)
    inputs = {(id(slot.node), slot.index) for slot, _ in slots}
    are_equal = all(array.shape == first.shape and np.array_equal(array, first) for _, array in slots)
    if old is not None and are_equal and _readers(old, inputs) <= inputs:
        old.const_value = ir.Tensor(np.ascontiguousarray(first), old.dtype, name=source)
        describe(old, old.const_value)
        for slot, _ in slots:
            slot.node.replace_input_with(slot.index, old)
        return
    for number, (slot, array) in enumerate(slots):
        name = f"{source}.joined{number}"
        joined = add_initializer(graph, ir.Tensor(np.ascontiguousarray(array), name=name))
        slot.node.replace_input_with(slot.index, joined)


def _readers(value: ir.Value, stops: set[tuple[int, int]]) -> set[tuple[int, int]]:
    """The inputs that a constant reaches, through what joins weights; `stops` are looked through no further."""
    inputs: set[tuple[int, int]] = set()
    for use in value.uses():
        if (id(use.node), use.idx) in stops or use.node.op_type not in _JOINING:
            inputs.add((id(use.node), use.idx))
        else:
            for output in use.node.outputs:
                inputs |= _readers(output, stops)
                if output.is_graph_output():
                    inputs.add((id(use.node), -1))
    return inputs
