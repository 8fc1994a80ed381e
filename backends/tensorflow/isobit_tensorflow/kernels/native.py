"""Keras operations outside the neutral vocabulary: run as Keras runs them, left in float."""

from __future__ import annotations

import json

import keras
import tensorflow as tf

from isobit.graph import Node
from isobit_tensorflow.kernels.operands import Operand

#: What the name of such an op begins with; the rest is the class of the Keras operation.
NATIVE = "keras::"


def run_native(node: Node, *operands: Operand | None) -> list[Operand]:
    """Call the operation that the node describes, with its tensors in the places they had."""
    operation = keras.saving.deserialize_keras_object(json.loads(node.attributes["operation"]))
    arguments = iter([None if operand is None else operand.canonical() for operand in operands])
    places = [next(arguments) if place == "tensor" else place for place in node.attributes["arguments"]]
    return [Operand(result) for result in tf.nest.flatten(operation(*places))]
