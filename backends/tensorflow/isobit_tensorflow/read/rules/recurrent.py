"""LSTM, GRU and Bidirectional: one node a layer and direction, in ONNX's order of gates.

The node reads (sequence, batch, features), W (gates * hidden, in), R (gates * hidden, hidden) and the two halves of
ONNX's bias at inputs 3 and 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from isobit.errors import ModelError
from isobit.graph import Blocks, Layout, Take
from isobit.graph.layout import TRANSPOSED, compose
from isobit_tensorflow.read.call import Call, Rule
from isobit_tensorflow.read.emitter import Size, Value
from isobit_tensorflow.read.rules.merging import broadcast, concatenate

#: Keras has an LSTM's gates as input, forget, cell, output; ONNX as input, output, forget, cell. A GRU's are the same.
GATES: Mapping[str, Layout] = {"LSTM": (Blocks((0, 3, 1, 2)),), "GRU": ()}


def _recurrent(call: Call) -> Value:
    layer = call.operation
    return _layer(call, layer, call.name, call.x)


def _layer(call: Call, layer: Any, name: str, x: Value, *, in_order: bool = False) -> Value:
    """The sequence, or its last step; Keras gives a backward layer's steps as they were computed."""
    e = call.emitter
    _check(name, layer)
    x = e.plain(x)
    steps, hidden = x.shape[1], int(layer.units)
    if steps is None:
        raise ModelError(f"{name!r} ({type(layer).__name__}) runs over a sequence of unknown length: give it one")
    backward = bool(layer.go_backwards)
    op = type(layer).__name__
    rows = _moved(call, x, f"{name}/sequence_first", (1, 0, 2))
    attributes: dict[str, Any] = {"hidden_size": hidden, "activations": ("Sigmoid", "Tanh", "Tanh")}
    if op == "GRU":
        attributes |= {"activations": ("Sigmoid", "Tanh"), "linear_before_reset": int(layer.reset_after)}
    attributes["direction"] = "reverse" if backward else "forward"
    y = _emit(call, op, name, [rows, *_weights(call, layer)], (steps, 1, x.shape[0], hidden), attributes)
    y = _moved(call, y, f"{name}/by_batch", (0, 2, 1, 3))
    y = _emit(call, "Reshape", f"{name}/joined", [y], (steps, x.shape[0], hidden), {"shape": (steps, -1, hidden)})
    if not layer.return_sequences:
        last = e.constant(f"{name}/last", 0 if backward else steps - 1, "int64")
        return e.emit("Gather", f"{name}/state", [y, last], (x.shape[0], hidden), axis=0)
    result = _moved(call, y, f"{name}/batch_first", (1, 0, 2))
    if backward and not in_order:
        result = _reversed(call, result, f"{name}/reversed")
    return result


def _weights(call: Call, layer: Any) -> list[str | None]:
    """W, R and the halves of the bias; an LSTM of Keras has the first half alone."""
    e, cell = call.emitter, layer.cell
    gates = GATES[type(layer).__name__]
    layout = compose(TRANSPOSED, gates)
    weights: list[str | None] = [e.weight(cell.kernel, layout), e.weight(cell.recurrent_kernel, layout)]
    if cell.bias is None:
        return weights
    if len(cell.bias.shape) == 1:
        return [*weights, e.weight(cell.bias, gates)]
    halves = [e.weight(cell.bias, (Take(index),)) for index in (0, 1)]
    return [*weights, halves[0], None, None, None, None, halves[1]]


def _check(name: str, layer: Any) -> None:
    usual = (keras.activations.tanh, keras.activations.sigmoid)
    reasons = {
        "other activations than tanh and sigmoid": (layer.activation, layer.recurrent_activation) != usual,
        "a state that it keeps from batch to batch": layer.stateful,
        "states that it returns": layer.return_state,
    }
    unread = [reason for reason, holds in reasons.items() if holds]
    if unread:
        raise ModelError(f"{name!r} ({type(layer).__name__}) has {unread[0]}, which is not read")


def _emit(
    call: Call, op: str, name: str, inputs: list[Any], shape: tuple[Size, ...], attributes: Mapping[str, Any]
) -> Value:
    result = call.emitter.emit(op, name, inputs, shape, **attributes)
    call.emitter.mark_batch(result.name, shape)
    return result


def _moved(call: Call, x: Value, name: str, perm: tuple[int, ...]) -> Value:
    result = call.emitter.transposed(x, perm, name)
    call.emitter.mark_batch(result.name, result.shape)
    return result


def _reversed(call: Call, x: Value, name: str) -> Value:
    """Steps from the last to the first."""
    ends = {"starts": (-1,), "ends": (-(1 << 63),), "axes": (1,), "steps": (-1,)}
    return call.emitter.emit("Slice", name, [x], x.shape, x.dtype, **ends)


def _bidirectional(call: Call) -> Value | list[Value]:
    """Both layers over the same sequence, each step's results side by side (or merged as the layer says)."""
    layer, name = call.operation, call.name
    if type(layer.forward_layer) not in LAYERS or type(layer.backward_layer) not in LAYERS:
        raise ModelError(f"{name!r}: Bidirectional is read around LSTM and GRU")
    both = [
        _layer(call, inner, f"{name}/{call.reader.name_of(inner)}", call.x, in_order=True)
        for inner in (layer.forward_layer, layer.backward_layer)
    ]
    merges = {"sum": "Add", "mul": "Mul"}
    if layer.merge_mode is None:
        return both
    if layer.merge_mode == "concat":
        return concatenate(call, both, -1)
    if layer.merge_mode in merges:
        return broadcast(call, merges[layer.merge_mode], both)
    total = broadcast(call, "Add", both, f"{name}/sum")
    return broadcast(call, "Mul", [total, 0.5])


LAYERS: Mapping[type, Rule] = {
    keras.layers.LSTM: _recurrent,
    keras.layers.GRU: _recurrent,
    keras.layers.Bidirectional: _bidirectional,
}
