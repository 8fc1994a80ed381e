"""`isobit.arithmetic` in JAX, bit for bit, with straight-through gradients.

Scale and zero point are arguments of the compiled function: XLA could rewrite a division by a constant.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from isobit import arithmetic
from isobit.encoding import Encoding
from isobit.quant_spec import PerChannel, PerTensor

_FLOATS = {
    "float16": jnp.float16, "bfloat16": jnp.bfloat16, "float8e4m3": jnp.float8_e4m3fn, "float8e5m2": jnp.float8_e5m2,
}  # fmt: skip


def parameters(encoding: Encoding, on: bool) -> tuple[Any, Any, Any]:
    """What changes without compiling again: scale, zero point and switch."""
    return jnp.asarray(encoding.scale), jnp.asarray(encoding.zero_point, jnp.float32), jnp.asarray(on)


def apply(encoding: Encoding, numbers: tuple[Any, Any, Any], x: Any) -> Any:
    """`x` on the grid of `encoding`, whose numbers are those of `parameters`."""
    scale, zero_point, on = numbers
    scale, zero_point = _broadcast(encoding, scale, x), _broadcast(encoding, zero_point, x)
    if encoding.spec.is_integer:
        rounded = _fake_quantize(x, scale, zero_point, encoding.spec.q_min, encoding.spec.q_max)
    else:
        rounded = _cast(x, scale, encoding.spec.dtype)
    return jnp.where(on, rounded, x)


def _broadcast(encoding: Encoding, numbers: Any, x: Any) -> Any:
    granularity, axis = encoding.spec.granularity, encoding.axis
    if isinstance(granularity, PerTensor) or axis is None:
        return numbers
    if isinstance(granularity, PerChannel):
        return numbers.reshape([-1 if place == axis else 1 for place in range(x.ndim)])
    return jnp.repeat(numbers, x.shape[axis] // numbers.shape[axis], axis)


@partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _fake_quantize(x: Any, scale: Any, zero_point: Any, low: int, high: int) -> Any:
    if high - low > 0xFFFF:  # float32 does not hold such grids, and float64 is an option of the whole process: NumPy
        return jax.pure_callback(partial(_wide, low=low, high=high), x, x, scale, zero_point)
    return (jnp.clip(lax.round(x / scale, _EVEN) + zero_point, low, high) - zero_point) * scale


@_fake_quantize.defjvp
def _straight_through(low: int, high: int, primals: Any, tangents: Any) -> tuple[Any, Any]:
    x, scale, zero_point = primals
    level = lax.round(x / scale, _EVEN) + zero_point
    return _fake_quantize(x, scale, zero_point, low, high), tangents[0] * ((level >= low) & (level <= high))


_EVEN = lax.RoundingMethod.TO_NEAREST_EVEN


def _wide(x: Any, scale: Any, zero_point: Any, *, low: int, high: int) -> Any:
    return arithmetic.fake_quantize(x, np.asarray(scale), np.asarray(zero_point, np.int32), low, high)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _cast(x: Any, scale: Any, dtype: str) -> Any:
    small, values = _FLOATS[dtype], x / scale
    if dtype.startswith("float8"):
        limit = float(jnp.finfo(small).max)
        values = jnp.clip(values, -limit, limit)
    # The barrier keeps XLA from taking the two casts away, which it may where precision is only gained.
    return lax.optimization_barrier(values.astype(small)).astype(jnp.float32) * scale


@_cast.defjvp
def _cast_straight_through(dtype: str, primals: Any, tangents: Any) -> tuple[Any, Any]:
    return _cast(*primals, dtype), tangents[0]
