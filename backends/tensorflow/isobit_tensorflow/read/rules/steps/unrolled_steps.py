"""Recurrent layers with cells that no node is: over a known number of steps, one copy of the cell a step.

All copies read the same constants, so a weight is quantized once.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from isobit.errors import ModelError
from isobit_tensorflow.read.call import Call
from isobit_tensorflow.read.emitter import Value

#: More copies than these would make a file slow to load and to run.
MOST_STEPS = 32
MOST_NODES = 400


def unrolled(call: Call, layer: Any, name: str, x: Value, initial: Sequence[Value], reason: str) -> Any:
    """The results of all steps in the order in which they are computed, the last one, and the last states.

    `reason` says why the layer is no node. Raises ModelError for an open number of steps, or too many.
    """
    count = x.shape[1]
    if count is None or count > MOST_STEPS:
        raise ModelError(
            f"{reason}; its cell is read for each step where the input has a known number of them, {MOST_STEPS} at most"
        )
    settings = {"training": False} if "training" in inspect.signature(layer.cell.call).parameters else {}

    def run(sequence: Any, *states: Any) -> Any:
        begin = layer.get_initial_state(batch_size=ops.shape(sequence)[0])
        given = states or [_as_tensor_of(sequence, state) for state in keras.tree.flatten(begin)]
        current = keras.tree.pack_sequence_as(begin, given)
        outputs = []
        for step in reversed(range(count)) if layer.go_backwards else range(count):
            output, current = layer.cell.call(sequence[:, step], current, **settings)
            current = current if keras.tree.is_nested(current) else [current]
            outputs.append(output)
        return ops.stack(outputs, axis=1), outputs[-1], keras.tree.flatten(current)

    before = len(call.emitter.nodes)
    result = call.reader.open(run, name, (x, *initial), {}, layer)
    nodes = len(call.emitter.nodes) - before
    if nodes > MOST_NODES:
        raise ModelError(f"{reason}; read step by step, it would be {nodes} nodes, and {MOST_NODES} are the most")
    return result


def _as_tensor_of(sequence: Any, state: Any) -> Any:
    """A first state, which no sample changes, as a tensor: what the cell computes of it would be constants."""
    line = sequence[(slice(None), *(0,) * (len(sequence.shape) - 1))]
    same = ops.equal(line, line)
    there = ops.reshape(ops.logical_or(same, ops.logical_not(same)), (-1, *(1,) * (len(state.shape) - 1)))  # NaN too
    return ops.where(there, state, state)
