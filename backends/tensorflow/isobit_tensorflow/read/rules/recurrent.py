"""LSTM, GRU, SimpleRNN, RNN around their cells, and Bidirectional: one node a layer and direction.

The node reads (sequence, batch, features), W (gates * hidden, in), R (gates * hidden, hidden) and the two halves of
ONNX's bias at inputs 3 and 8, gates in ONNX's order; states that it does not begin with at 0 at inputs 5 and 6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras

from isobit.errors import ModelError
from isobit.graph import Blocks, Layout, Take
from isobit.graph.layout import TRANSPOSED, compose
from isobit_tensorflow.read.call import Call, Rule
from isobit_tensorflow.read.emitter import Size, Value
from isobit_tensorflow.read.rules.merging import broadcast, concatenate
from isobit_tensorflow.read.rules.steps.masked_steps import Steps, steps_of
from isobit_tensorflow.read.rules.steps.unrolled_steps import unrolled

#: Keras has an LSTM's gates as input, forget, cell, output; ONNX as input, output, forget, cell. A GRU's are the same.
GATES: Mapping[str, Layout] = {"LSTM": (Blocks((0, 3, 1, 2)),), "GRU": (), "RNN": ()}

_CELLS: Mapping[type, str] = {
    keras.layers.LSTMCell: "LSTM", keras.layers.GRUCell: "GRU", keras.layers.SimpleRNNCell: "RNN",
}  # fmt: skip

_ACTIVATIONS: Mapping[Any, str] = {
    keras.activations.tanh: "Tanh", keras.activations.sigmoid: "Sigmoid", keras.activations.relu: "Relu",
    keras.activations.softsign: "Softsign", keras.activations.softplus: "Softplus",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Result:
    """What a layer gives: all its steps, its last one, and its last states."""

    sequence: Value
    last: Value
    states: tuple[Value, ...]


def _recurrent(call: Call) -> Any:
    """The sequence or its last step, and the states where the layer returns them."""
    layer, states = call.operation, call.kwargs.get("initial_state")
    states = [states] if isinstance(states, Value) else list(states or ())
    result = _layer(call, layer, call.name, call.x, call.kwargs.get("mask"), states)
    first = result.sequence if layer.return_sequences else result.last
    return [first, *result.states] if layer.return_state else first


def _layer(
    call: Call, layer: Any, name: str, x: Value, mask: Value | None, initial: Sequence[Value], *, in_order: bool = False
) -> _Result:
    """Keras gives a backward layer's steps as they were computed; `in_order`, as they lie in the sequence."""
    e = call.emitter
    cells, reason = _cells(layer, name)
    if layer.stateful:
        e.notes.append(f"{name}: the state that it keeps from batch to batch begins at 0 in each batch here")
    if reason:
        if mask is not None:
            raise ModelError(f"{reason}; nor are its cells read behind a mask")
        sequence, last, ends = unrolled(call, layer, name, x, initial, reason)
        if layer.go_backwards and in_order:
            sequence = _reversed(call, e.plain(sequence), f"{name}/reversed")
        return _Result(sequence, last, tuple(ends))
    if initial and len(cells) > 1:
        raise ModelError(f"{name!r} is called with initial states of several cells, which are not read")
    x = e.plain(x)
    steps = (
        None if mask is None else steps_of(call, name, mask, bool(layer.go_backwards), bool(layer.zero_output_for_mask))
    )
    backward = bool(layer.go_backwards) and steps is None
    if steps is not None:
        x = steps.packed(x)
    result = None
    for cell in cells:
        label = name if len(cells) == 1 else f"{name}/{call.reader.name_of(cell)}"
        result = _cell(call, cell, label, x, initial, backward=backward, with_states=layer.return_state, steps=steps)
        x = result.sequence
    assert result is not None
    if len(cells) > 1 and layer.return_state:
        raise ModelError(f"{name!r} returns the states of several cells, which is not read")
    if steps is not None:
        result = replace(result, sequence=steps.spread(result.sequence))
    if layer.go_backwards and in_order == (steps is not None):
        result = replace(result, sequence=_reversed(call, result.sequence, f"{name}/reversed"))
    return result


def _cells(layer: Any, name: str) -> tuple[list[Any], str]:
    """The cells of a layer, and why no node is one of them, if so."""
    cells = list(layer.cell.cells) if type(layer.cell) is keras.layers.StackedRNNCells else [layer.cell]
    for cell in cells:
        if type(cell) not in _CELLS:
            return cells, f"{name!r} ({type(layer).__name__}) runs a {type(cell).__name__}, which no node is"
        functions = [cell.activation, getattr(cell, "recurrent_activation", cell.activation)]
        unknown = [function for function in functions if function not in _ACTIVATIONS]
        if unknown:
            label = getattr(unknown[0], "__name__", str(unknown[0]))
            return cells, f"{name!r} ({type(layer).__name__}) has the activation {label}, which no node has"
    if len(cells) > 1 and layer.go_backwards:
        return cells, f"{name!r} runs several cells backwards, which no node does"
    return cells, ""


def _cell(
    call: Call,
    cell: Any,
    name: str,
    x: Value,
    initial: Sequence[Value],
    *,
    backward: bool,
    with_states: bool,
    steps: Steps | None,
) -> _Result:
    e, op, hidden = call.emitter, _CELLS[type(cell)], int(cell.units)
    batch, count = x.shape[0], x.shape[1]
    attributes: dict[str, Any] = {"hidden_size": hidden, "activations": _activations(cell, op)}
    if op == "GRU":
        attributes["linear_before_reset"] = int(cell.reset_after)
    attributes["direction"] = "reverse" if backward else "forward"
    rows = _moved(call, x, f"{name}/sequence_first", (1, 0, 2), 1)
    operands = [rows, *_weights(call, cell, op)]
    operands += [None] * (5 - len(operands)) if initial else []
    for index, state in enumerate(initial):
        target = {"shape": (1, -1, hidden)}
        state = _emit(call, "Reshape", f"{name}/initial{index}", [e.plain(state)], (1, batch, hidden), target, 1)
        operands[5 + index : 6 + index] = [state]
    shapes: list[tuple[Size, ...]] = [(count, 1, batch, hidden)]
    if op == "LSTM" and with_states:
        if steps is not None:
            raise ModelError(f"{name!r} returns its states behind a mask, which is not read")
        shapes += [(1, batch, hidden)] * 2
    y, *states = e.emit_many(op, name, operands, [(shape, "float32") for shape in shapes], **attributes)
    for result, shape in zip((y, *states), shapes, strict=True):
        e.mark_batch(result.name, shape, len(shape) - 2)
    y = _moved(call, y, f"{name}/by_batch", (0, 2, 1, 3), 1)
    joined = {"shape": (-1 if count is None else count, -1, hidden)}
    y = _emit(call, "Reshape", f"{name}/joined", [y], (count, batch, hidden), joined, 1)
    sequence = _moved(call, y, f"{name}/batch_first", (1, 0, 2), 0)
    if steps is not None:
        last = steps.last(sequence, initial[0] if initial else None)
    else:
        last = _last(call, y, f"{name}/state", 0 if backward else -1)
    ends = [last]
    for index, state in enumerate(states[1:]):
        ends.append(_emit(call, "Reshape", f"{name}/end{index}", [state], (batch, hidden), {"shape": (-1, hidden)}, 0))
    return _Result(sequence, last, tuple(ends))


def _activations(cell: Any, op: str) -> tuple[str, ...]:
    inner = _ACTIVATIONS[cell.activation]
    if op == "RNN":
        return (inner,)
    gates = _ACTIVATIONS[cell.recurrent_activation]
    return (gates, inner, inner) if op == "LSTM" else (gates, inner)


def _weights(call: Call, cell: Any, op: str) -> list[str | None]:
    """W, R and the halves of the bias; an LSTM of Keras has the first half alone."""
    e, gates = call.emitter, GATES[op]
    layout = compose(TRANSPOSED, gates)
    weights: list[str | None] = [e.weight(cell.kernel, layout), e.weight(cell.recurrent_kernel, layout)]
    if cell.bias is None:
        return weights
    if len(cell.bias.shape) == 1:
        return [*weights, e.weight(cell.bias, gates)]
    halves = [e.weight(cell.bias, (Take(index),)) for index in (0, 1)]
    return [*weights, halves[0], None, None, None, None, halves[1]]


def _last(call: Call, y: Value, name: str, index: int) -> Value:
    """One step of (sequence, batch, hidden), the first (0) or the last (-1)."""
    count, batch, hidden = y.shape
    if index == 0 or count is not None:
        place = call.emitter.constant(f"{name}/index", 0 if index == 0 else (count or 0) - 1, "int64")
        return _emit(call, "Gather", name, [y, place], (batch, hidden), {"axis": 0}, 0)
    ends = {"starts": (-1,), "ends": (1 << 62,), "axes": (0,), "steps": (1,)}
    cut = _emit(call, "Slice", f"{name}/last", [y], (1, batch, hidden), ends, 1)
    return _emit(call, "Reshape", name, [cut], (batch, hidden), {"shape": (-1, hidden)}, 0)


def _emit(
    call: Call,
    op: str,
    name: str,
    inputs: list[Any],
    shape: tuple[Size, ...],
    attributes: Mapping[str, Any],
    batch_axis: int,
) -> Value:
    result = call.emitter.emit(op, name, inputs, shape, **attributes)
    call.emitter.mark_batch(result.name, shape, batch_axis)
    return result


def _moved(call: Call, x: Value, name: str, perm: tuple[int, ...], batch_axis: int) -> Value:
    result = call.emitter.transposed(x, perm, name)
    call.emitter.mark_batch(result.name, result.shape, batch_axis)
    return result


def _reversed(call: Call, x: Value, name: str) -> Value:
    """Steps from the last to the first."""
    ends = {"starts": (-1,), "ends": (-(1 << 63),), "axes": (1,), "steps": (-1,)}
    return call.emitter.emit("Slice", name, [x], x.shape, x.dtype, **ends)


def _bidirectional(call: Call) -> Any:
    """Both layers over the same sequence, each step's results side by side (or merged as the layer says)."""
    layer, name, mask = call.operation, call.name, call.kwargs.get("mask")
    states = call.kwargs.get("initial_state")
    states = list(states or ())
    half = len(states) // 2
    results = [
        _layer(call, inner, f"{name}/{call.reader.name_of(inner)}", call.x, mask, begin, in_order=True)
        for inner, begin in ((layer.forward_layer, states[:half]), (layer.backward_layer, states[half:]))
        if type(inner) in LAYERS or _not_read(name, inner)
    ]
    both = [result.sequence if layer.return_sequences else result.last for result in results]
    merges = {"sum": "Add", "mul": "Mul"}
    merged: Any
    if layer.merge_mode is None:
        merged = both
    elif layer.merge_mode == "concat":
        merged = concatenate(call, both, -1)
    elif layer.merge_mode in merges:
        merged = broadcast(call, merges[layer.merge_mode], both)
    else:
        total = broadcast(call, "Add", both, f"{name}/sum")
        merged = broadcast(call, "Mul", [total, 0.5])
    if not layer.return_state:
        return merged
    ends = [state for result in results for state in result.states]
    return [*(merged if isinstance(merged, list) else [merged]), *ends]


def _not_read(name: str, inner: Any) -> bool:
    raise ModelError(f"{name!r} is around a {type(inner).__name__}, which is not read")


LAYERS: Mapping[type, Rule] = {
    keras.layers.LSTM: _recurrent,
    keras.layers.GRU: _recurrent,
    keras.layers.SimpleRNN: _recurrent,
    keras.layers.RNN: _recurrent,
    keras.layers.ConvLSTM1D: _recurrent,
    keras.layers.ConvLSTM2D: _recurrent,
    keras.layers.ConvLSTM3D: _recurrent,
    keras.layers.Bidirectional: _bidirectional,
}
