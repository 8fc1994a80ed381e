"""Keras operations outside the neutral vocabulary: run as Keras runs them, left in float."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import keras
import tensorflow as tf

from isobit.graph import Node
from isobit_tensorflow.kernels.operands import Operand

#: What the name of such an op begins with; the rest is the class of the Keras operation or layer.
NATIVE = "keras::"


def run_native(node: Node, *operands: Operand | None) -> list[Operand]:
    """Call the operation that the node describes, with its tensors in the places they had."""
    operation = _operation(node.attributes["operation"])
    arguments = iter([None if operand is None else operand.canonical() for operand in operands])
    places = [next(arguments) if place == "tensor" else place for place in node.attributes["arguments"]]
    settings = {name: node.attributes[name] for name in ("training",) if name in node.attributes}
    return [Operand(result) for result in tf.nest.flatten(operation(*places, **settings))]


@lru_cache(maxsize=64)
def _operation(config: str) -> Any:
    """The operation of a configuration; kept, because a traced pass may point to a table that it holds."""
    with tf.init_scope():
        return keras.saving.deserialize_keras_object(json.loads(config))
