"""Gradients of rounding to a grid, and the grid that is learned, as `isobit.encodings.learned_grid` has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from isobit.arithmetic import SMALLEST_SCALE
from isobit.encodings.learned_grid import LOG_BOUND
from isobit_tensorflow.simulate.arithmetic import fake_quantize, work_type

Gradients = Callable[..., Any]


def straight_through(x: tf.Tensor, scale: tf.Tensor, zero: tf.Tensor, q_min: int, q_max: int) -> tf.Tensor:
    """`x` rounded to a grid that stays; gradients pass inside it."""

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def rounded(values: tf.Tensor) -> tuple[tf.Tensor, Gradients]:
        def backward(upstream: tf.Tensor) -> tf.Tensor:
            _, _, inside = _position(values, scale, zero, q_min, q_max)
            return tf.where(inside, upstream, tf.zeros_like(upstream))

        return fake_quantize(values, scale, zero, q_min, q_max), backward

    return rounded(x)


def learned(x: tf.Tensor, scale: tf.Tensor, zero: tf.Tensor, q_min: int, q_max: int, *, rounding: bool) -> tf.Tensor:
    """`x` rounded to a grid that broadcasts against it, with gradients by `x`, the scale and the zero point.

    With `rounding` off the error of rounding moves no scale, only what the grid cuts off.
    """

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def rounded(values: tf.Tensor, steps: tf.Tensor, offset: tf.Tensor) -> tuple[tf.Tensor, Gradients]:
        def backward(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            ratio, position, inside = _position(values, steps, offset, q_min, q_max)
            work = ratio.dtype
            passed = tf.where(inside, upstream, tf.zeros_like(upstream))
            level = tf.clip_by_value(position, tf.constant(q_min, work), tf.constant(q_max, work))
            level -= tf.cast(offset, work)
            within = level - ratio if rounding else tf.zeros_like(level)
            by_scale = tf.cast(upstream, work) * tf.where(inside, within, level)
            cut = tf.cast(upstream - passed, work) * -tf.cast(steps, work)
            return passed, _sum_to(by_scale, steps), _sum_to(cut, offset)

        return fake_quantize(values, steps, offset, q_min, q_max), backward

    return rounded(x, scale, zero)


def _position(
    x: tf.Tensor, scale: tf.Tensor, zero: tf.Tensor, q_min: int, q_max: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Values in steps of the grid, their integers before they are cut, and which of these are inside."""
    work = work_type(q_min, q_max)
    ratio = tf.cast(tf.cast(x, tf.float32), work) / tf.cast(scale, work)
    position = tf.math.rint(ratio) + tf.cast(zero, work)
    return ratio, position, (position >= q_min) & (position <= q_max)


def _sum_to(value: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Summed over the axes along which `like` was broadcast."""
    missing = value.shape.rank - like.shape.rank
    axes = [axis for axis in range(value.shape.rank) if axis < missing or like.shape[axis - missing] == 1]
    return tf.cast(tf.reshape(tf.reduce_sum(value, axes), like.shape), like.dtype)


def learned_scale(log_scale: tf.Tensor, start: tf.Tensor, factor: Any, unit: float) -> tf.Tensor:
    """``start * exp(unit * log_scale)`` within bounds; `factor` scales the gradient."""

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def grown(value: tf.Tensor) -> tuple[tf.Tensor, Gradients]:
        exponent = unit * value
        scale = tf.maximum(start * tf.exp(tf.clip_by_value(exponent, -LOG_BOUND, LOG_BOUND)), SMALLEST_SCALE)
        return scale, lambda upstream: _inward(upstream * scale * factor, exponent, -LOG_BOUND, LOG_BOUND)

    return grown(log_scale)


def learned_zero_point(
    offset: tf.Tensor, start: tf.Tensor, factor: Any, levels: int, q_min: int, q_max: int
) -> tf.Tensor:
    """``start + levels * offset`` as an integer of the grid; `factor` scales the gradient."""

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def moved(value: tf.Tensor) -> tuple[tf.Tensor, Gradients]:
        at = start + levels * value
        zero = tf.clip_by_value(tf.math.rint(at), q_min, q_max)
        return zero, lambda upstream: _inward(upstream * levels * factor, at, q_min, q_max)

    return moved(offset)


def _inward(gradient: tf.Tensor, value: tf.Tensor, low: float, high: float) -> tf.Tensor:
    """Without what is not finite, and without what would carry a value further beyond its bounds."""
    outward = ((value <= low) & (gradient > 0)) | ((value >= high) & (gradient < 0))
    return tf.where(outward | ~tf.math.is_finite(gradient), tf.zeros_like(gradient), gradient)
