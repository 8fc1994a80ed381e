"""Quantizers: registered Keras layers that hold an encoding in variables."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from isobit.arithmetic import SMALLEST_SCALE
from isobit.encodings import Encoding, Encodings, LearnedGrid, PerChannel, PerTensor
from isobit.errors import EncodingError
from isobit.formats import isobit_json
from isobit.graph import Site
from isobit_tensorflow.simulate.arithmetic import cast, fake_quantize
from isobit_tensorflow.simulate.learned_grid import learned, learned_scale, learned_zero_point, straight_through
from isobit_tensorflow.simulate.variables import put, value_of

_GRID, _MOVES = ("scale", "zero_point"), ("log_scale", "offset")
_VARIABLES = (*_GRID, "on", *_MOVES)

#: Rounds a tensor to scale and zero point that broadcast against it, between two bounds.
Rounder = Callable[..., tf.Tensor]

#: The value of a variable: its own, or that of what stands for it in a traced pass.
Read = Callable[[keras.Variable], tf.Tensor]


@keras.saving.register_keras_serializable("isobit")
class Quantizer(keras.layers.Layer):  # type: ignore[misc]
    """Rounds the tensor or constant of `site` to the grid of its encoding, where it is switched on.

    `scale` is float32 and `zero_point` float32 too, of the shape that the encoding has; `on` is 0 or 1. They are
    variables because a constant would be folded into other arithmetic. A grid that is learned starts there, and the
    variables `log_scale` and `offset` say how far it has moved.
    """

    def __init__(
        self,
        encodings: str,
        learns: dict[str, Any] | None = None,
        name: str | None = None,
        *,
        keeps_zeros: bool = False,
    ) -> None:
        """`encodings` is isobit's JSON of one site and its encoding; `learns` is a `LearnedGrid` as JSON data.

        With `keeps_zeros` what is zero gets no gradient, so that a sparse weight stays sparse.
        """
        super().__init__(name=name, dtype="float32", autocast=False)
        self.keeps_zeros = keeps_zeros
        (self.site, self._template), *others = isobit_json.loads(encodings, "quantizer").items()
        if others:
            raise EncodingError("a quantizer holds the encoding of one site")
        self.scale = self._variable("scale", self._template.scale, np.float32)
        self.zero_point = self._variable("zero_point", self._template.zero_point, np.float32)
        self.on = self._variable("on", np.float32(1), np.float32)
        self._grid_record = None if learns is None else json.dumps(learns)  # a text, which Keras does not track
        self.learns = None if learns is None else LearnedGrid.from_record(learns)
        if self.learns is not None:
            still = np.zeros(self._template.scale.shape, np.float32)
            self.log_scale = self._variable("log_scale", still, np.float32)
            self.log_scale.trainable = True
            self.offset = self._variable("offset", still, np.float32)
            self.offset.trainable = self.learns.zero_point_levels > 0
        self._related: Callable[[], tuple[Quantizer, ...]] | None = None  # a function, so that they are no sublayers
        self.built = True

    @classmethod
    def of(
        cls, site: Site, encoding: Encoding, grid: LearnedGrid | None = None, *, keeps_zeros: bool = False
    ) -> Quantizer:
        """A quantizer at `site`, whose grid is learned where `grid` says how."""
        learns = None if grid is None else grid.to_record()
        return cls(isobit_json.dumps(Encodings({site: encoding})), learns, keeps_zeros=keeps_zeros)

    def _variable(self, name: str, value: Any, dtype: Any) -> keras.Variable:
        array = np.array(value, dtype)
        variable = self.add_weight(
            name=name,
            shape=array.shape,
            initializer=lambda shape, dtype=None: tf.constant(array),
            dtype="float32",
            autocast=False,
        )
        variable.trainable = False  # set later: one created as not trainable never gets a gradient
        return variable

    # --- encodings -------------------------------------------------------------------------------------------------

    @property
    def encoding(self) -> Encoding:
        """The encoding as it is now: learned or loaded values included."""
        scale, zero_point = self._values()
        scale = np.maximum(scale, np.float32(SMALLEST_SCALE))
        zero = np.rint(zero_point).astype(np.int32)
        if np.array_equal(scale, self._template.scale) and np.array_equal(zero, self._template.zero_point):
            return self._template
        return replace(self._template, scale=scale, zero_point=zero, multiplier=None, channel_scale=None)

    def fits(self, encoding: Encoding) -> bool:
        """Whether `set` can take an encoding: the grid is part of the compiled function, its numbers are not."""
        same = bool(encoding.spec == self._template.spec) and encoding.axis == self._template.axis
        return same and self.learns is None and encoding.scale.shape == tuple(self.scale.shape)

    def set(self, encoding: Encoding) -> None:
        """Take other numbers for the same grid."""
        if encoding.scale.shape != tuple(self.scale.shape):
            raise EncodingError(f"scales of shape {encoding.scale.shape} do not fit {tuple(self.scale.shape)}")
        self._template = encoding
        put(self.scale, encoding.scale)
        put(self.zero_point, encoding.zero_point.astype(np.float32))

    @property
    def enabled(self) -> bool:
        """Whether it rounds."""
        return bool(value_of(self.on))

    @enabled.setter
    def enabled(self, value: bool) -> None:
        put(self.on, np.float32(value))

    def relate(self, *related: Quantizer) -> None:
        """Have the grid of one other quantizer, or as scale the product of those of two.

        Without arguments the grid is its own from now on, as it is.
        """
        if self._related is not None:
            for variable, value in zip((self.scale, self.zero_point), self._values(), strict=True):
                put(variable, value)
        self._related = (lambda: related) if related else None

    def _values(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scale and zero point as they are now."""
        if self._related is None and self.learns is None:
            return np.asarray(value_of(self.scale), np.float32), np.asarray(value_of(self.zero_point), np.float32)
        scale, zero_point = self._grid(tf.convert_to_tensor)
        return np.asarray(scale.numpy(), np.float32), np.asarray(zero_point.numpy(), np.float32)

    # --- computing -------------------------------------------------------------------------------------------------

    def call(self, x: tf.Tensor, axes: Sequence[int] | None = None) -> tf.Tensor:
        """`x` on the grid; `axes` are the canonical axes in the order in which `x` has them."""
        if self.keeps_zeros:
            x = x * tf.cast(tf.not_equal(x, 0), x.dtype)
        leader = self._leader()
        rounder: Rounder = straight_through
        if leader.learns is not None:
            rounder = partial(learned, rounding=leader.learns.rounding)
        return tf.where(tf.convert_to_tensor(self.on) > 0.5, self._rounded(x, axes, rounder, tf.convert_to_tensor), x)

    def rounded(self, x: tf.Tensor, axes: Sequence[int] | None = None, read: Read = tf.convert_to_tensor) -> tf.Tensor:
        """What `call` gives where the quantizer is on, for evaluation: without a switch, and without gradients."""
        return self._rounded(x, axes, fake_quantize, read)

    def switched(self, x: tf.Tensor, axes: Sequence[int] | None = None, read: Read = tf.convert_to_tensor) -> tf.Tensor:
        """What `call` gives, for evaluation: without gradients."""
        return tf.where(read(self.on) > 0.5, self.rounded(x, axes, read), x)

    @property
    def held(self) -> list[keras.Variable]:
        """The variables, in an order of their own."""
        return [getattr(self, name) for name in _VARIABLES if hasattr(self, name)]

    @property
    def structure(self) -> Hashable:
        """All that a pass through it depends on, but the values of the variables."""
        related = self._related() if self._related is not None else ()
        spec, axis = self._template.spec, self._template.axis
        return self.site, spec, axis, tuple(self.scale.shape), self._grid_record, tuple(other.site for other in related)

    def followed(self) -> tuple[Quantizer, ...]:
        """Those whose variables a pass through this one reads: itself, and what it is related to, however far.

        Not a property: Keras saves what the properties of a layer hold.
        """
        related = self._related() if self._related is not None else ()
        return (self, *(other for layer in related for other in layer.followed()))

    def _leader(self) -> Quantizer:
        """The quantizer whose grid this one has: itself, or the one other that it is related to."""
        related = self._related() if self._related is not None else ()
        return related[0] if len(related) == 1 else self

    def _rounded(self, x: tf.Tensor, axes: Sequence[int] | None, rounder: Rounder, read: Read) -> tf.Tensor:
        spec = self._template.spec
        steps, zero_point = self._grid(read)
        scale = self._broadcast(steps, x, axes)
        if spec.is_integer:
            zero = self._broadcast(zero_point, x, axes)
            return rounder(x, scale, zero, spec.q_min, spec.q_max)
        return cast(x, scale, spec.dtype)

    def _grid(self, read: Read) -> tuple[tf.Tensor, tf.Tensor]:
        """Scale and zero point, of a quantizer that another is related to by that one's variables."""
        related = self._related() if self._related is not None else ()
        if len(related) == 1:
            return related[0]._grid(read)
        scale, zero_point = read(self.scale), read(self.zero_point)
        if related:
            source, weight = (tf.stop_gradient(layer._grid(read)[0]) for layer in related)
            scale = source * weight
        elif self.learns is not None:
            factor, levels, spec = self.learns.factor, self.learns.zero_point_levels, self._template.spec
            scale = learned_scale(read(self.log_scale), scale, factor, self.learns.unit)
            if levels:
                zero_point = learned_zero_point(read(self.offset), zero_point, factor, levels, spec.q_min, spec.q_max)
        return tf.maximum(scale, SMALLEST_SCALE), zero_point

    def _broadcast(self, grid: tf.Tensor, x: tf.Tensor, axes: Sequence[int] | None) -> tf.Tensor:
        axis, granularity = self._template.axis, self._template.spec.granularity
        if isinstance(granularity, PerTensor) or axis is None:
            return grid
        order = list(range(x.shape.rank)) if axes is None else list(axes)
        if isinstance(granularity, PerChannel):
            return tf.reshape(grid, [-1 if i == axis else 1 for i in order])
        size = x.shape[order.index(axis)]
        blocks = tf.repeat(grid, size // self.scale.shape[axis], axis)
        return blocks if axes is None else tf.transpose(blocks, order)

    def save_own_variables(self, store: Any) -> None:
        """Variables by name, scale and zero point as they are now; of a grid that is learned, where it starts too."""
        values = {name: getattr(self, name).numpy() for name in _VARIABLES if hasattr(self, name)}
        if self.learns is not None:
            values.update({f"start_{name}": values[name] for name in _GRID})
        values.update(zip(_GRID, self._values(), strict=True))
        for name, value in values.items():
            store[name] = value

    def load_own_variables(self, store: Any) -> None:
        """What `save_own_variables` wrote.

        A grid that is not learned takes what another has learned, and one that is learned starts from one that is not.
        """
        self.on.assign(store["on"])
        starts = self.learns is not None and "start_scale" in store
        for name in _GRID:
            getattr(self, name).assign(store[f"start_{name}" if starts else name])
        for name in _MOVES if self.learns is not None else ():
            variable = getattr(self, name)
            variable.assign(store[name] if starts else np.zeros(variable.shape, np.float32))

    def get_config(self) -> dict[str, Any]:
        """The site and the encoding as it is now, or where it is learned from."""
        current = self.encoding if self.learns is None else self._template
        learns = None if self._grid_record is None else json.loads(self._grid_record)
        encodings = isobit_json.dumps(Encodings({self.site: current}))
        return {"name": self.name, "encodings": encodings, "learns": learns, "keeps_zeros": self.keeps_zeros}

    def take_values(self, other: Quantizer) -> None:
        """Take the variables of a quantizer of the same configuration."""
        for name in _VARIABLES:
            if hasattr(self, name):
                put(getattr(self, name), value_of(getattr(other, name)))
