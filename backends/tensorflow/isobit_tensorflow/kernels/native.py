"""Keras operations outside the neutral vocabulary: run as Keras runs them, left in float."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from isobit.errors import ModelError
from isobit.graph import Node
from isobit.graph.ops import VARIABLES
from isobit_tensorflow.kernels.operands import Operand

#: What the name of such an op begins with; the rest is the class of the Keras operation or layer.
NATIVE = "keras::"

#: Layers that no configuration makes again (a class inside of a function), by what stands for theirs.
_own_operations: dict[str, Any] = {}


def run_native(node: Node, *operands: Operand | None) -> list[Operand]:
    """Call the operation that the node describes, with its tensors in the places they had."""
    tensors = [None if operand is None else operand.canonical() for operand in operands]
    a = node.attributes
    count = int(a.get(VARIABLES, 0))
    operation = native_operation(a["operation"])
    values = tensors[len(tensors) - count :] if count else []
    args, named = json.loads(a["arguments"], object_hook=lambda entry: _tensor(entry, tensors))
    settings = {name: a[name] for name in ("training",) if name in a}
    pairs = [
        (variable, tf.cast(value, variable.dtype)) for variable, value in zip(_weights(operation), values, strict=True)
    ]
    with keras.StatelessScope(state_mapping=pairs):
        results = operation(*args, **named, **settings)
    widths = [operand.tensor.dtype for operand in operands if operand is not None]
    width = next((dtype for dtype in widths if dtype.is_floating), tf.float32)
    produced = [tf.convert_to_tensor(result) for result in keras.tree.flatten(results)]
    # a layer may compute in another width than the model is simulated in
    return [Operand(tf.cast(value, width) if value.dtype.is_floating else value) for value in produced]


def _tensor(entry: dict[str, Any], tensors: list[Any]) -> Any:
    """What an entry of the arguments stands for: a tensor, an array, a function that is kept, or itself."""
    if set(entry) == {"tensor"}:
        return tensors[entry["tensor"]]
    if set(entry) == {"array", "dtype"}:
        return np.array(entry["array"], entry["dtype"])
    return native_operation(entry["function"]) if set(entry) == {"function"} else entry


def _weights(operation: Any) -> list[Any]:
    return list(getattr(operation, "weights", ()))


def native_operation(config: str) -> Any:
    """The operation of a configuration, its variables with values that nobody reads."""
    own = _own_operations.get(config)
    return _made(config) if own is None else own


def keep_operation(name: str, operation: Any) -> str:
    """What stands for the configuration of an operation that has none, in this process."""
    number, key = 0, name
    while _own_operations.setdefault(_own(key), operation) is not operation:
        number += 1
        key = f"{name}#{number}"
    return _own(key)


def _own(name: str) -> str:
    return json.dumps({"own": name})


@lru_cache(maxsize=64)
def _made(config: str) -> Any:
    """Kept, because a traced pass may point to a table that it holds."""
    record = json.loads(config)
    if "own" in record:
        raise ModelError(
            f"the layer {record['own']!r} is in no file: give its class a get_config and have it outside of functions, "
            "or open the model that it belongs to here first"
        )
    with tf.init_scope():
        return keras.saving.deserialize_keras_object(record)
