"""What the kernels read: tensors in canonical axes or with the channels last, and constants in any order of axes.

TensorFlow convolves with the channels last. A tensor of three or more axes may be kept that way, and is transposed only
where a kernel asks for the other order, so that a chain of convolutions and activations moves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from isobit.graph import Blocks, Layout, Permute, Take, View
from isobit.graph.layout import LayoutStep, compose
from isobit_tensorflow.axes import first_axes, last_axes

#: A tensor on its quantizer's grid; the canonical axes in the order in which the tensor has them, None for their own.
Rounding = Callable[[tf.Tensor, Sequence[int] | None], tf.Tensor]


class Operand:
    """A tensor. `axes` says the canonical axes in stored order, None where that is their own order."""

    def __init__(self, tensor: tf.Tensor, last: bool = False) -> None:
        self.tensor, self.last = tensor, last
        self._other: tf.Tensor | None = None

    @property
    def rank(self) -> int:
        """Number of axes."""
        return int(self.tensor.shape.rank)

    @property
    def axes(self) -> tuple[int, ...] | None:
        """The canonical axes in stored order; None for canonical order."""
        return last_axes(self.rank) if self.last else None

    def canonical(self) -> tf.Tensor:
        """The tensor in canonical axes."""
        return self._transposed(first_axes(self.rank)) if self.last else self.tensor

    def channels_last(self) -> tf.Tensor:
        """The tensor with the channels last."""
        return self.tensor if self.last else self._transposed(last_axes(self.rank))

    def _transposed(self, axes: Sequence[int]) -> tf.Tensor:
        if self._other is None:
            self._other = tf.transpose(self.tensor, axes)
        return self._other

    def like(self, tensor: tf.Tensor) -> Operand:
        """Another tensor in this one's order of axes."""
        return Operand(tensor, self.last)

    def rounded(self, rounding: Rounding) -> Operand:
        """The tensor on a quantizer's grid."""
        return self.like(rounding(self.tensor, self.axes))


class Constant(Operand):
    """A constant of the graph: its variable through its layout, then through its quantizer; read at its first use."""

    def __init__(self, variable: keras.Variable, layout: Layout, rounding: Rounding | None = None) -> None:
        self.variable, self.layout, self._rounding = variable, layout, rounding
        self._forms: dict[tuple[int, ...], tf.Tensor] = {}
        self.last = False
        self._rank = _rank_of(len(variable.shape), layout)

    @cached_property
    def native(self) -> tf.Tensor:
        """The variable's value."""
        return tf.convert_to_tensor(self.variable)

    @property
    def rank(self) -> int:
        """Number of canonical axes."""
        return self._rank

    @property
    def tensor(self) -> tf.Tensor:
        """The canonical value."""
        return self.form(tuple(range(self._rank)))

    def canonical(self) -> tf.Tensor:
        """The canonical value."""
        return self.tensor

    def channels_last(self) -> tf.Tensor:
        """The value with axis 1 last."""
        return self.form(last_axes(self._rank))

    def form(self, axes: tuple[int, ...]) -> tf.Tensor:
        """The quantized value with its canonical axes in this order; nothing moves where it is kept that way."""
        if axes not in self._forms:
            value = apply_layout(self.native, compose(self.layout, (Permute(axes),)))
            self._forms[axes] = value if self._rounding is None else self._rounding(value, axes)
        return self._forms[axes]

    def rounded(self, rounding: Rounding) -> Constant:
        """The same constant on another grid: that of a reader which has its own."""
        return Constant(self.variable, self.layout, rounding)


def _rank_of(rank: int, layout: Layout) -> int:
    for step in layout:
        if isinstance(step, View):
            rank = len(step.shape)
        elif isinstance(step, Take):
            rank -= 1
    return rank


def apply_layout(value: tf.Tensor, layout: Sequence[LayoutStep]) -> tf.Tensor:
    """`isobit.graph.to_canonical` on a tensor."""
    for step in layout:
        if isinstance(step, Permute):
            value = tf.transpose(value, step.axes)
        elif isinstance(step, View):
            value = tf.reshape(value, step.shape)
        elif isinstance(step, Blocks):
            parts = tf.split(value, len(step.order), 0)
            value = tf.concat([parts[index] for index in step.order], 0)
        else:
            value = value[step.index]
    return value


def numbers(value: Any) -> tuple[int, ...]:
    """Integers of an attribute."""
    return tuple(int(n) for n in np.atleast_1d(value))
