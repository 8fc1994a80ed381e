"""Kernels of recurrent layers: ONNX's equations, one direction, a while loop over the sequence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from isobit.errors import ModelError
from isobit.graph import Node
from isobit.graph.ops import ACTIVATIONS
from isobit_tensorflow.kernels.operands import Constant, Operand

CellStep = Callable[[tf.Tensor, tuple[tf.Tensor, ...]], tuple[tf.Tensor, ...]]


def _layer(node: Node, x: Operand, w: Constant, r: Constant, *rest: Operand | None) -> list[Operand]:
    """(sequence, batch, in) to (sequence, 1, batch, hidden), and the last states (1, batch, hidden).

    `rest` are ONNX's inputs from the bias on.
    """
    optional: list[Operand | None] = [*rest, *[None] * (6 - len(rest))]
    bias, lengths, state, cell, peepholes, recurrent_bias = optional
    if lengths is not None or peepholes is not None:
        raise ModelError(f"node {node.name!r}: lengths and peepholes are not run")
    value = x.canonical()
    hidden = int(node.attributes["hidden_size"])
    # the product with the inputs needs no state: it is one for all steps
    steps = tf.tensordot(value, tf.cast(w.form((1, 0)), value.dtype), 1) + _bias(bias, value)
    cells = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}
    step = cells[node.op](node, tf.cast(r.form((1, 0)), value.dtype), _bias(recurrent_bias, value), hidden)
    zeros = tf.zeros(tf.stack([tf.shape(value)[1], hidden]), value.dtype)
    given = (state, cell) if node.op == "LSTM" else (state,)
    initial = tuple(zeros if entry is None else tf.cast(entry.canonical()[0], value.dtype) for entry in given)
    backward = node.attributes.get("direction", "forward") == "reverse"
    result, last = _over(steps, step, initial, backward=backward)
    result.set_shape((value.shape[0], value.shape[1], hidden))
    return [Operand(tensor) for tensor in (result[:, None], *(state[None] for state in last))][: len(node.outputs)]


def _bias(operand: Operand | None, like: tf.Tensor) -> tf.Tensor:
    return tf.zeros((), like.dtype) if operand is None else tf.cast(operand.canonical(), like.dtype)


def _over(
    steps: tf.Tensor, step: CellStep, states: tuple[tf.Tensor, ...], *, backward: bool
) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
    """The first state after each step, at the place of its step, and all states after the last."""
    count = tf.shape(steps)[0]
    empty = tf.TensorArray(steps.dtype, count, element_shape=states[0].shape)

    def body(index: tf.Tensor, results: tf.TensorArray, *before: tf.Tensor) -> tuple[Any, ...]:
        place = count - 1 - index if backward else index
        after = step(steps[place], before)
        return (index + 1, results.write(place, after[0]), *after)

    _, results, *last = tf.while_loop(lambda index, *_: index < count, body, (tf.constant(0), empty, *states))
    return results.stack(), tuple(last)


def _lstm(node: Node, recurrent: tf.Tensor, bias: tf.Tensor, hidden: int) -> CellStep:
    """Gates: input, output, forget, cell."""
    gate, inner, outer = _functions(node)

    def step(from_input: tf.Tensor, states: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
        state, cell = states
        i, o, f, c = tf.split(from_input + tf.linalg.matmul(state, recurrent) + bias, 4, -1)
        cell = gate(f) * cell + gate(i) * inner(c)
        return gate(o) * outer(cell), cell

    return step


def _gru(node: Node, recurrent: tf.Tensor, bias: tf.Tensor, hidden: int) -> CellStep:
    """Gates: update, reset, hidden; the reset acts behind the product or in front of it."""
    behind = bool(node.attributes.get("linear_before_reset", 0))
    gates, last = recurrent[:, : 2 * hidden], recurrent[:, 2 * hidden :]
    both = bias + tf.zeros(3 * hidden, bias.dtype)
    gate, inner_function = _functions(node)

    def step(from_input: tf.Tensor, states: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
        (state,) = states
        z, reset = tf.split(
            gate(from_input[:, : 2 * hidden] + tf.linalg.matmul(state, gates) + both[: 2 * hidden]), 2, -1
        )
        if behind:
            inner = reset * (tf.linalg.matmul(state, last) + both[2 * hidden :])
        else:
            inner = tf.linalg.matmul(reset * state, last) + both[2 * hidden :]
        candidate = inner_function(from_input[:, 2 * hidden :] + inner)
        return ((1 - z) * candidate + z * state,)

    return step


def _rnn(node: Node, recurrent: tf.Tensor, bias: tf.Tensor, hidden: int) -> CellStep:
    """One function of the sum of both products."""
    (function,) = _functions(node)

    def step(from_input: tf.Tensor, states: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
        return (function(from_input + tf.linalg.matmul(states[0], recurrent) + bias),)

    return step


_FUNCTIONS: Mapping[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "Sigmoid": tf.sigmoid, "Tanh": tf.tanh, "Relu": tf.nn.relu, "Softsign": tf.nn.softsign,
    "Softplus": tf.math.softplus,
}  # fmt: skip


def _functions(node: Node) -> list[Callable[[tf.Tensor], tf.Tensor]]:
    """The activations of one direction, in ONNX's order."""
    names = node.attributes.get("activations", ACTIVATIONS[node.op])
    return [_FUNCTIONS[name] for name in names]


RECURRENT: Mapping[str, Callable[..., Any]] = {"LSTM": _layer, "GRU": _layer, "RNN": _layer}
