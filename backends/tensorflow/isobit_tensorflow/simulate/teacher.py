"""The float model beside its simulator, which is to come near it."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from isobit.errors import ModelError
from isobit.training import DistillationSettings
from isobit.training.distillation import SMALLEST
from isobit_tensorflow.simulate.simulator import Simulator


class Teacher:
    """``loss(outputs, inputs)`` of outputs of the simulator for the inputs that it was called with."""

    def __init__(self, model: Simulator, settings: DistillationSettings) -> None:
        """`model` has no quantizers."""
        graph = model.graph
        self.model, self.settings = model, settings
        self.names = settings.chosen([name for name, tensor in graph.outputs.items() if graph.is_float(tensor)])

    def __call__(self, outputs: Any, inputs: Any) -> tf.Tensor:
        """The loss, a number with a gradient by `outputs`."""
        wanted = keras.tree.flatten(self.model(inputs, training=False))
        names = keras.tree.flatten(self.model.output_structure)
        pairs = zip(names, keras.tree.flatten(outputs), wanted, strict=True)
        losses = [_loss(s, tf.stop_gradient(t), self.settings.temperature) for n, s, t in pairs if n in self.names]
        return tf.add_n(losses) * (self.settings.weight / len(losses))

    def add_to(self, simulator: Any) -> Any:
        """Let each pass of training of a simulator, which is returned, add the loss to that it is compiled with.

        Call it on what `trainable()` returned. Raises ModelError for another model.
        """
        if not isinstance(simulator, Simulator):
            raise ModelError("the loss is added to a simulator: what trainable() returned, which is sim.model")
        simulator.teach_by(self)
        return simulator


def _loss(student: Any, teacher: Any, temperature: float | None) -> tf.Tensor:
    """As `isobit.training.distillation.distillation_loss`."""
    student, teacher = tf.cast(student, tf.float32), tf.cast(teacher, tf.float32)
    if temperature is None:
        return tf.reduce_mean(tf.square(student - teacher)) / tf.maximum(tf.reduce_mean(tf.square(teacher)), SMALLEST)
    logs = [tf.nn.log_softmax(values / temperature) for values in (student, teacher)]
    return tf.reduce_mean(tf.reduce_sum(tf.exp(logs[1]) * (logs[1] - logs[0]), -1)) * temperature**2
