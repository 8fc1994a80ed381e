"""`isobit.backend.Differentiable` in TensorFlow: a pass of the simulator with some of its variables replaced."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from isobit.backend import Batch
from isobit.backend.quiet_loggers import quiet_loggers
from isobit.errors import ModelError
from isobit.graph import Graph, to_canonical, to_native
from isobit_tensorflow.simulate.simulator import Simulator

Array = NDArray[Any]
Tensors = Mapping[str, tf.Tensor]


def gradient(
    simulator: Simulator, function: Callable[[Tensors], Any], weights: Mapping[str, Array], feeds: Tensors
) -> tuple[float, dict[str, Array]]:
    """The value of a function of the outputs, and its gradient by `weights`, overridden."""
    return _by_weights(simulator, weights, partial(_derive, simulator, function, None, feeds))


class PartError:
    """The squared error of a part's outputs and its gradient, traced once for each kind of arguments.

    Gradients are those of a part of the error, a power of two, which changes no bit of float32: of so many elements the
    whole would not fit into the float16 of a mixed policy, and the mean would be nothing there.
    """

    def __init__(self, simulator: Simulator, part: Graph) -> None:
        self._simulator, self._part = simulator, part
        self._derive = tf.function(self._traced, autograph=False, reduce_retracing=True)

    def __call__(self, weights: Mapping[str, Array], given: Tensors, wanted: Batch) -> tuple[float, dict[str, Array]]:
        """Of this batch, with `weights` overridden."""
        targets = {name: tf.convert_to_tensor(wanted[name]) for name in self._part.outputs}
        size = max(sum(np.size(wanted[name]) for name in targets), 1)
        scale = tf.constant(2.0 ** round(math.log2(size) / 2), tf.float32)
        return _by_weights(self._simulator, weights, partial(self._derive, given, targets, scale))

    def _traced(self, given: Tensors, wanted: Tensors, scale: tf.Tensor, leaves: Tensors) -> tuple[tf.Tensor, Tensors]:
        def error(outputs: Tensors) -> tf.Tensor:
            pairs = [(tf.cast(value, wanted[name].dtype), wanted[name]) for name, value in outputs.items()]
            errors = [tf.reduce_sum(tf.math.squared_difference(*pair)) for pair in pairs]
            return tf.add_n([tf.cast(found, tf.float32) for found in errors]) / scale

        value, gradients = _derive(self._simulator, error, self._part, given, leaves)
        return value * scale, {name: tf.cast(by, tf.float32) * scale for name, by in gradients.items()}


def _derive(
    simulator: Simulator, function: Callable[[Tensors], Any], part: Graph | None, feeds: Tensors, leaves: Tensors
) -> tuple[Any, Tensors]:
    """The value of a function, and its gradient by what stands for variables."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(leaves)
        value = function(simulator.run_named(feeds, parameters={**simulator.parameters, **leaves}, part=part))
    gradients = tape.gradient(value, leaves)
    if leaves and all(found is None for found in gradients.values()):
        raise ModelError(
            "the function's value does not depend on the weights: compute it from the outputs by TensorFlow's own "
            "operations, without stop_gradient and NumPy"
        )
    found = {name: tf.zeros_like(leaves[name]) if by is None else by for name, by in gradients.items()}
    return value, {name: tf.convert_to_tensor(by) for name, by in found.items()}  # one by rows of a table is sparse


def _by_weights(
    simulator: Simulator, weights: Mapping[str, Array], derive: Callable[[Tensors], tuple[Any, Tensors]]
) -> tuple[float, dict[str, Array]]:
    """What `derive` makes of variables in which `weights` are overridden, as gradients by these.

    A weight is a variable's values, or some of them, in another order: so is its gradient.
    """
    parameters = simulator.parameters
    places = {name: (simulator.graph.weights[name].source or name) for name in weights}
    layouts = {name: simulator.graph.weights[name].layout for name in weights}
    natives = {source: parameters[source].numpy() for source in set(places.values())}
    for name, source in places.items():
        natives[source] = to_native(weights[name], layouts[name], natives[source])
    with quiet_loggers("tensorflow"):
        value, by = derive({source: tf.convert_to_tensor(native) for source, native in natives.items()})
    return float(value), {n: np.array(to_canonical(by[s].numpy(), layouts[n]), np.float32) for n, s in places.items()}
