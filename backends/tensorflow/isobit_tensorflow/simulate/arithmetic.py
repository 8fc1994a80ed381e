"""`isobit.arithmetic` in TensorFlow, bit for bit.

Scale and zero point must come from variables: in a tf.function a constant divisor is rewritten to a multiplication by
its inverse, which breaks ties, and a constant zero point 0 is optimised away. TensorFlow's own fake-quantize ops round
otherwise.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

_EXACT_IN_FLOAT32 = 1 << 16

FLOAT_TYPES = {
    "float16": tf.float16,
    "bfloat16": tf.bfloat16,
    "float8e4m3": tf.dtypes.experimental.float8_e4m3fn,
    "float8e5m2": tf.dtypes.experimental.float8_e5m2,
}


def work_type(q_min: int, q_max: int) -> tf.DType:
    """The type in which positions on a grid are exact."""
    return tf.float32 if q_max - q_min < _EXACT_IN_FLOAT32 else tf.float64


def fake_quantize(x: tf.Tensor, scale: tf.Tensor, zero_point: tf.Tensor, q_min: int, q_max: int) -> tf.Tensor:
    """`x` rounded to the grid, without gradients; `scale` and `zero_point` broadcast against it."""
    work = work_type(q_min, q_max)
    values, steps = tf.cast(tf.cast(x, tf.float32), work), tf.cast(scale, work)
    zero = tf.math.rint(tf.cast(zero_point, work))
    q = tf.clip_by_value(tf.math.rint(values / steps) + zero, tf.constant(q_min, work), tf.constant(q_max, work))
    return tf.cast(tf.cast((q - zero) * steps, tf.float32), x.dtype)


def cast(x: tf.Tensor, scale: tf.Tensor, dtype: str) -> tf.Tensor:
    """`x` rounded to a smaller float type times a scale; the gradient passes straight through."""
    small = FLOAT_TYPES[dtype]

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def rounded(values: tf.Tensor) -> tuple[tf.Tensor, Any]:
        if dtype.startswith("float8"):
            limit = float(small.max)
            values = tf.clip_by_value(values, -limit, limit)
        return tf.cast(tf.cast(values, small), tf.float32), lambda upstream: upstream

    return tf.cast(rounded(tf.cast(x, tf.float32) / scale) * scale, x.dtype)
