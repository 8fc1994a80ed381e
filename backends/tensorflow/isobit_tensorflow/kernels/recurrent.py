"""Kernels of recurrent layers: ONNX's equations, one direction, a while loop over the sequence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from isobit.errors import ModelError
from isobit.graph import Node
from isobit_tensorflow.kernels.operands import Constant, Operand

CellStep = Callable[[tf.Tensor, tuple[tf.Tensor, ...]], tuple[tf.Tensor, ...]]


def _layer(node: Node, x: Operand, w: Constant, r: Constant, *rest: Operand | None) -> Operand:
    """(sequence, batch, in) to (sequence, 1, batch, hidden); `rest` are ONNX's inputs from the bias on."""
    optional: list[Operand | None] = [*rest, *[None] * (6 - len(rest))]
    bias, *unsupported, recurrent_bias = optional
    if any(operand is not None for operand in unsupported):
        raise ModelError(f"node {node.name!r}: lengths, initial states and peepholes are not run")
    value = x.canonical()
    hidden = int(node.attributes["hidden_size"])
    # the product with the inputs needs no state: it is one for all steps
    steps = tf.tensordot(value, tf.cast(w.form((1, 0)), value.dtype), 1) + _bias(bias, value)
    cells = {"LSTM": _lstm, "GRU": _gru}
    step = cells[node.op](node, tf.cast(r.form((1, 0)), value.dtype), _bias(recurrent_bias, value), hidden)
    zeros = tf.zeros(tf.stack([tf.shape(value)[1], hidden]), value.dtype)
    backward = node.attributes.get("direction", "forward") == "reverse"
    result = _over(steps, step, (zeros,) * (2 if node.op == "LSTM" else 1), backward=backward)
    result.set_shape((value.shape[0], value.shape[1], hidden))
    return Operand(result[:, None])


def _bias(operand: Operand | None, like: tf.Tensor) -> tf.Tensor:
    return tf.zeros((), like.dtype) if operand is None else tf.cast(operand.canonical(), like.dtype)


def _over(steps: tf.Tensor, step: CellStep, states: tuple[tf.Tensor, ...], *, backward: bool) -> tf.Tensor:
    """The first state after each step, at the place of its step."""
    count = tf.shape(steps)[0]
    empty = tf.TensorArray(steps.dtype, count, element_shape=states[0].shape)

    def body(index: tf.Tensor, results: tf.TensorArray, *before: tf.Tensor) -> tuple[Any, ...]:
        place = count - 1 - index if backward else index
        after = step(steps[place], before)
        return (index + 1, results.write(place, after[0]), *after)

    _, results, *_ = tf.while_loop(lambda index, *_: index < count, body, (tf.constant(0), empty, *states))
    return results.stack()


def _lstm(node: Node, recurrent: tf.Tensor, bias: tf.Tensor, hidden: int) -> CellStep:
    """Gates: input, output, forget, cell."""

    def step(from_input: tf.Tensor, states: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
        state, cell = states
        i, o, f, c = tf.split(from_input + tf.linalg.matmul(state, recurrent) + bias, 4, -1)
        cell = tf.sigmoid(f) * cell + tf.sigmoid(i) * tf.tanh(c)
        return tf.sigmoid(o) * tf.tanh(cell), cell

    return step


def _gru(node: Node, recurrent: tf.Tensor, bias: tf.Tensor, hidden: int) -> CellStep:
    """Gates: update, reset, hidden; the reset acts behind the product or in front of it."""
    behind = bool(node.attributes.get("linear_before_reset", 0))
    gates, last = recurrent[:, : 2 * hidden], recurrent[:, 2 * hidden :]
    both = bias + tf.zeros(3 * hidden, bias.dtype)

    def step(from_input: tf.Tensor, states: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
        (state,) = states
        z, reset = tf.split(
            tf.sigmoid(from_input[:, : 2 * hidden] + tf.linalg.matmul(state, gates) + both[: 2 * hidden]), 2, -1
        )
        if behind:
            inner = reset * (tf.linalg.matmul(state, last) + both[2 * hidden :])
        else:
            inner = tf.linalg.matmul(reset * state, last) + both[2 * hidden :]
        candidate = tf.tanh(from_input[:, 2 * hidden :] + inner)
        return ((1 - z) * candidate + z * state,)

    return step


RECURRENT: Mapping[str, Callable[..., Any]] = {"LSTM": _layer, "GRU": _layer}
