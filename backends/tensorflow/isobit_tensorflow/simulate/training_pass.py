"""One pass of training: what a network does beside inference, at the places that `Training` keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from isobit.graph import Graph, Node
from isobit_tensorflow.kernels.normalization import batch_moments, batch_norm
from isobit_tensorflow.kernels.operands import Constant, Operand
from isobit_tensorflow.kernels.table import compute
from isobit_tensorflow.training import Training


class TrainingPass:
    """Drops values in front of their readers, and normalises by the batch, whose statistics the variables follow."""

    def __init__(
        self,
        graph: Graph,
        variables: Mapping[str, keras.Variable],
        training: Training,
        seeds: Mapping[str, keras.random.SeedGenerator],
    ) -> None:
        """`seeds` are the generators of the dropouts by name."""
        self._graph, self._variables, self._momentum, self._seeds = graph, variables, training.momentum, seeds
        self._dropouts = {reader: dropout for dropout in training.dropouts for reader in dropout.readers}
        self._dropped: dict[str, Operand] = {}

    def compute(self, node: Node, operands: Sequence[Operand | None]) -> tuple[Operand, ...]:
        """The results of a node in training."""
        operands = [None if value is None else self.drop((node.name, i), value) for i, value in enumerate(operands)]
        momentum = self._momentum.get(node.name)
        if momentum is None:
            return compute(node, operands)
        x, scale, shift, *_ = operands
        assert x is not None
        assert isinstance(scale, Constant)
        assert isinstance(shift, Constant)
        mean, variance = batch_moments(x)
        for name, value in ((node.inputs[3], mean), (node.inputs[4], variance)):
            moving = self._variables[self._source(name)]
            moving.assign(moving * momentum + tf.cast(value, moving.dtype) * (1 - momentum))
        return (batch_norm(node, x, scale, shift, mean, variance),)

    def _source(self, name: str | None) -> str:
        return self._graph.weights[name or ""].source or name or ""

    def drop(self, reader: tuple[str, Any], value: Operand) -> Operand:
        """What a reader, (node, input index) or ("", output), has of a tensor; readers of one dropout see the same."""
        dropout = self._dropouts.get(reader)
        if dropout is None:
            return value
        if dropout.name not in self._dropped:
            tensor = value.tensor
            noise = None
            if dropout.noise is not None:
                sizes = tf.shape(tensor)
                order = value.axes or range(value.rank)
                noise = [sizes[i] if dropout.noise[axis] < 0 else dropout.noise[axis] for i, axis in enumerate(order)]
            seed = self._seeds[dropout.name]
            self._dropped[dropout.name] = value.like(keras.random.dropout(tensor, dropout.rate, noise, seed))
        return self._dropped[dropout.name]
