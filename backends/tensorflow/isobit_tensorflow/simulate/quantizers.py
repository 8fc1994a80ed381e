"""Quantizers: registered Keras layers that hold an encoding in variables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from isobit.arithmetic import SMALLEST_SCALE
from isobit.encodings import Encoding, Encodings, PerChannel, PerTensor
from isobit.encodings.relations import product_scale
from isobit.errors import EncodingError
from isobit.formats import isobit_json
from isobit.graph import Site
from isobit_tensorflow.simulate.arithmetic import Rint, cast, fake_quantize, straight_through
from isobit_tensorflow.simulate.variables import put, value_of

_VARIABLES = ("scale", "zero_point", "on")


@keras.saving.register_keras_serializable("isobit")
class Quantizer(keras.layers.Layer):  # type: ignore[misc]
    """Rounds the tensor or constant of `site` to the grid of its encoding, where it is switched on.

    `scale` is float32 and `zero_point` float32 too, of the shape that the encoding has; `on` is 0 or 1. They are
    variables because a constant would be folded into other arithmetic.
    """

    def __init__(self, encodings: str, learned: tuple[bool, bool] = (False, False), name: str | None = None) -> None:
        """`encodings` is isobit's JSON of one site and its encoding; `learned` says whether its parts are trained."""
        super().__init__(name=name, dtype="float32", autocast=False)
        (self.site, self._template), *others = isobit_json.loads(encodings, "quantizer").items()
        if others:
            raise EncodingError("a quantizer holds the encoding of one site")
        self.scale = self._variable("scale", self._template.scale, np.float32)
        self.zero_point = self._variable("zero_point", self._template.zero_point, np.float32)
        self.on = self._variable("on", np.float32(1), np.float32)
        self.scale.trainable, self.zero_point.trainable = learned
        self._related: Callable[[], tuple[Quantizer, ...]] | None = None  # a function, so that they are no sublayers
        self._is_fixed = False
        self.built = True

    @classmethod
    def of(cls, site: Site, encoding: Encoding) -> Quantizer:
        """A quantizer at `site`."""
        return cls(isobit_json.dumps(Encodings({site: encoding})))

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
        spec = self._template.spec
        scale, zero_point = self._values()
        scale = np.maximum(np.abs(scale), np.float32(SMALLEST_SCALE))
        zero = np.rint(zero_point).astype(np.int32)
        if spec.is_integer:
            zero = np.clip(zero, spec.q_min, spec.q_max)
        if np.array_equal(scale, self._template.scale) and np.array_equal(zero, self._template.zero_point):
            return self._template
        return replace(self._template, scale=scale, zero_point=zero, multiplier=None, channel_scale=None)

    def fits(self, encoding: Encoding) -> bool:
        """Whether `set` can take an encoding: the grid is part of the compiled function, its numbers are not."""
        return bool(encoding.spec == self._template.spec) and encoding.axis == self._template.axis

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

    def relate(self, *related: Quantizer, is_fixed: bool = False) -> None:
        """Have the grid of one other quantizer, or as scale the product of those of two; or never learn a scale.

        Without arguments the grid is its own from now on, as it is.
        """
        if self._related is not None:
            for variable, value in zip((self.scale, self.zero_point), self._values(), strict=True):
                put(variable, value)
        self._related = (lambda: related) if related else None
        self._is_fixed = is_fixed
        if related or is_fixed:
            self.scale.trainable = self.zero_point.trainable = False

    def _leader(self) -> Quantizer | None:
        """The one other whose grid it has."""
        related = self._related() if self._related is not None else ()
        return related[0] if len(related) == 1 else None

    def _values(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scale and zero point as they are now."""
        related = self._related() if self._related is not None else ()
        if len(related) == 1:
            return related[0]._values()
        if related:
            scale = product_scale(*(layer.encoding for layer in related))
        else:
            scale = np.asarray(value_of(self.scale), np.float32)
        return scale, np.asarray(value_of(self.zero_point), np.float32)

    def learn(self, on: bool = True, *, zero_point: bool = False) -> None:
        """Train the scale (and an asymmetric grid's zero point) together with the weights, or stop that.

        Quantizers that share a grid learn the variables of the first. Fixed scales, and those that are products of two
        others, are not trained.
        """
        leader = self._leader()
        if leader is not None:
            leader.learn(on, zero_point=zero_point)
            return
        if on and (self._is_fixed or self._related is not None):
            return
        self.scale.trainable = on
        self.zero_point.trainable = on and zero_point and not self._template.spec.symmetric

    # --- computing -------------------------------------------------------------------------------------------------

    def call(self, x: tf.Tensor, axes: Sequence[int] | None = None) -> tf.Tensor:
        """`x` on the grid; `axes` are the canonical axes in the order in which `x` has them."""
        return tf.where(tf.convert_to_tensor(self.on) > 0.5, self._rounded(x, axes, straight_through), x)

    def rounded(self, x: tf.Tensor, axes: Sequence[int] | None = None) -> tf.Tensor:
        """What `call` gives where the quantizer is on, for evaluation: without a switch, and without gradients."""
        return self._rounded(x, axes, tf.math.rint)

    def _rounded(self, x: tf.Tensor, axes: Sequence[int] | None, rint: Rint) -> tf.Tensor:
        spec = self._template.spec
        steps, zero_point = self._grid()
        scale = self._broadcast(steps, x, axes)
        if spec.is_integer:
            zero = self._broadcast(zero_point, x, axes)
            return fake_quantize(x, scale, zero, spec.q_min, spec.q_max, rint)
        return cast(x, scale, spec.dtype)

    def _grid(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Scale and zero point, of a quantizer that another is related to by that one's variables."""
        related = self._related() if self._related is not None else ()
        if len(related) == 1:
            return related[0]._grid()
        scale = tf.convert_to_tensor(self.scale)
        if related:
            source, weight = (layer._grid()[0] for layer in related)
            scale = source * weight
        positive = tf.maximum(tf.abs(scale), SMALLEST_SCALE)  # training may carry it past zero
        return positive, tf.convert_to_tensor(self.zero_point)

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
        """Scale, zero point and switch, by name."""
        scale, zero_point = self._values()
        store["scale"], store["zero_point"], store["on"] = scale, zero_point, self.on.numpy()

    def load_own_variables(self, store: Any) -> None:
        """What `save_own_variables` wrote."""
        for name in _VARIABLES:
            getattr(self, name).assign(store[name])

    def get_config(self) -> dict[str, Any]:
        """The site and the encoding as it is now."""
        current = isobit_json.dumps(Encodings({self.site: self.encoding}))
        learned = (bool(self.scale.trainable), bool(self.zero_point.trainable))
        return {"name": self.name, "encodings": current, "learned": learned}
