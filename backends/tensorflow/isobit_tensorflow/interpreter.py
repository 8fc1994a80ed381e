"""Runs the neutral graph with TensorFlow's kernels, quantizers where they sit; eager or traced by a tf.function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from isobit.graph import Graph, Node
from isobit.sites import Input, Site, Tensor, Weight
from isobit_tensorflow.kernels import compute
from isobit_tensorflow.kernels_normalization import batch_moments, batch_norm
from isobit_tensorflow.operands import Constant, Operand
from isobit_tensorflow.training import Training

#: Told of a tensor before and after its quantizer, and of a single reader's own.
Tap = Callable[[Site, str, Operand], None]

#: A tensor on its quantizer's grid; the canonical axes in the order in which the tensor has them, None for their own.
Rounding = Callable[[tf.Tensor, Sequence[int] | None], tf.Tensor]


class Run:
    """One pass: values by name as they are computed, and let go after their last reader."""

    def __init__(
        self,
        graph: Graph,
        variables: Mapping[str, keras.Variable],
        quantizers: Mapping[Site, Rounding],
        training: Training | None = None,
        seeds: Mapping[str, keras.random.SeedGenerator] | None = None,
        tap: Tap | None = None,
    ) -> None:
        self.graph, self.variables, self.quantizers = graph, variables, quantizers
        self.training, self.seeds, self.tap = training, seeds or {}, tap
        self._values: dict[str, Operand] = {}
        self._raw: dict[str, Operand] = {}  # before the quantizer, where a single reader has its own
        self._constants: dict[Site, Constant] = {}
        self._dropped: dict[str, Operand] = {}
        self._left = Counter(name for node in graph.nodes for name in node.inputs if name is not None)
        self._left.update(graph.outputs.values())
        self._own: set[str | None] = {
            graph.node(site.node).inputs[site.index] for site in quantizers if isinstance(site, Input)
        }
        dropouts = training.dropouts if training is not None else ()
        self._drops = {reader: dropout for dropout in dropouts for reader in dropout.readers}

    def __call__(self, feeds: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The outputs by name, in canonical layout."""
        for name, value in feeds.items():
            self._produce(name, Operand(value))
        for node in self.graph.nodes:
            operands = [self._operand(node, index) for index in range(len(node.inputs))]
            for name, result in zip(node.outputs, self._compute(node, operands), strict=False):
                self._produce(name, result)
            for read in node.inputs:
                self._release(read)
        return {name: self._output(name, tensor) for name, tensor in self.graph.outputs.items()}

    def _output(self, name: str, tensor: str) -> tf.Tensor:
        value = self._values[tensor] if tensor in self._values else self._constant(Weight(tensor), tensor)
        return self._drop(("", name), value).canonical()

    # --- values ----------------------------------------------------------------------------------------------------

    def _produce(self, name: str, value: Operand) -> None:
        site = Tensor(name)
        if self.tap is not None:
            self.tap(site, "before", value)
        if name in self._own:
            self._raw[name] = value
        quantizer = self.quantizers.get(site)
        if quantizer is not None:
            value = value.like(quantizer(value.tensor, value.axes))
            if self.tap is not None:
                self.tap(site, "after", value)
        self._values[name] = value

    def _release(self, name: str | None) -> None:
        if name is None:
            return
        self._left[name] -= 1
        if not self._left[name]:
            self._values.pop(name, None)
            self._raw.pop(name, None)

    def _operand(self, node: Node, index: int) -> Operand | None:
        name = node.inputs[index]
        if name is None:
            return None
        own = Input(node.name, index)
        if name not in self._values:
            return self._constant(own if own in self.quantizers else Weight(name), name)
        value = self._values[name]
        if own in self.quantizers:
            raw = self._raw[name]
            value = raw.like(self.quantizers[own](raw.tensor, raw.axes))
            if self.tap is not None:
                self.tap(own, "before", raw)
                self.tap(own, "after", value)
        return self._drop((node.name, index), value)

    def _constant(self, site: Site, name: str) -> Constant:
        if site not in self._constants:
            info = self.graph.weights[name]
            native = tf.convert_to_tensor(self.variables[info.source or name])
            quantizer = self.quantizers.get(site)

            def quantize(value: tf.Tensor, axes: tuple[int, ...] | None) -> tf.Tensor:
                return value if quantizer is None else quantizer(value, axes)

            self._constants[site] = Constant(native, info.layout, quantize)
        return self._constants[site]

    # --- training --------------------------------------------------------------------------------------------------

    def _compute(self, node: Node, operands: list[Operand | None]) -> list[Operand]:
        momentum = None if self.training is None else self.training.momentum.get(node.name)
        if momentum is None:
            return compute(node, operands)
        x, scale, shift, *_ = operands
        assert x is not None
        assert isinstance(scale, Constant)
        assert isinstance(shift, Constant)
        mean, variance = batch_moments(x)
        for name, value in ((node.inputs[3], mean), (node.inputs[4], variance)):
            moving = self.variables[self._source(name)]
            moving.assign(moving * momentum + tf.cast(value, moving.dtype) * (1 - momentum))
        return [batch_norm(node, x, scale, shift, mean, variance)]

    def _source(self, name: str | None) -> str:
        return self.graph.weights[name or ""].source or name or ""

    def _drop(self, reader: tuple[str, Any], value: Operand) -> Operand:
        dropout = self._drops.get(reader)
        if dropout is None:
            return value
        if dropout.name not in self._dropped:
            tensor = value.tensor
            noise = None
            if dropout.noise is not None:
                sizes = tf.shape(tensor)
                order = value.axes or range(value.rank)
                noise = [sizes[i] if dropout.noise[axis] < 0 else dropout.noise[axis] for i, axis in enumerate(order)]
            seed = self.seeds[dropout.name]
            self._dropped[dropout.name] = value.like(keras.random.dropout(tensor, dropout.rate, noise, seed))
        return self._dropped[dropout.name]
