"""`isobit.arithmetic` in JAX, bit for bit, with straight-through gradients.

Scale and zero point are arguments of the compiled function: XLA could rewrite a division by a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

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


class Form(NamedTuple):
    """What is compiled in: ``int``, ``wide`` or a float type; the axis of channels or blocks; whether it has blocks."""

    kind: str
    axis: int | None
    blocks: bool

    @classmethod
    def of(cls, encoding: Encoding) -> Form:
        """The form of an encoding."""
        spec = encoding.spec
        kind = spec.dtype if not spec.is_integer else "int" if spec.q_max - spec.q_min <= 0xFFFF else "wide"
        per_tensor = isinstance(spec.granularity, PerTensor)
        return cls(
            kind, None if per_tensor else encoding.axis, not isinstance(spec.granularity, PerTensor | PerChannel)
        )


def parameters(encoding: Encoding, on: bool) -> tuple[Any, ...]:
    """What changes without compiling again: scale, zero point, lowest and highest level, and the switch."""
    spec = encoding.spec
    numbers = (encoding.zero_point, spec.q_min, spec.q_max) if spec.is_integer else (encoding.zero_point, 0, 0)
    return jnp.asarray(encoding.scale), *(jnp.asarray(n, jnp.float32) for n in numbers), jnp.asarray(on)


def apply(form: Form, numbers: Sequence[Any], x: Any) -> Any:
    """`x` on the grid of the encoding whose form and numbers these are."""
    scale, zero_point, low, high, on = numbers
    # Behind a barrier XLA cannot see that a divisor is repeated, for which it would multiply by the inverse.
    scale = lax.optimization_barrier(jnp.broadcast_to(_broadcast(form, scale, x), x.shape))
    zero_point = _broadcast(form, zero_point, x)
    if form.kind == "int":
        rounded = _fake_quantize(x, scale, zero_point, low, high)
    elif form.kind == "wide":
        rounded = _fake_quantize_wide(x, scale, zero_point, low, high)
    else:
        rounded = _cast(x, scale, form.kind)
    return jnp.where(on, rounded, x)


def _broadcast(form: Form, numbers: Any, x: Any) -> Any:
    if form.axis is None:
        return numbers
    if form.blocks:
        return jnp.repeat(numbers, x.shape[form.axis] // numbers.shape[form.axis], form.axis)
    return numbers.reshape([-1 if place == form.axis else 1 for place in range(x.ndim)])


def _level(x: Any, scale: Any, zero_point: Any) -> Any:
    return lax.round(x / scale, lax.RoundingMethod.TO_NEAREST_EVEN) + zero_point


@jax.custom_jvp
def _fake_quantize(x: Any, scale: Any, zero_point: Any, low: Any, high: Any) -> Any:
    return (jnp.clip(_level(x, scale, zero_point), low, high) - zero_point) * scale


@jax.custom_jvp
def _fake_quantize_wide(x: Any, scale: Any, zero_point: Any, low: Any, high: Any) -> Any:
    """NumPy's: float32 does not hold such grids, and float64 is an option of the whole process in JAX."""
    return jax.pure_callback(_in_numpy, x, x, scale, zero_point, low, high)


def _in_numpy(x: Any, scale: Any, zero_point: Any, low: Any, high: Any) -> Any:
    zero = np.asarray(zero_point, np.int32)
    low, high = max(int(low), -(2**31)), min(int(high), 2**31 - 1)  # float32 has neither end exactly
    return arithmetic.fake_quantize(np.asarray(x), np.asarray(scale), zero, low, high)


def _straight_through(primals: Any, tangents: Any, function: Any) -> tuple[Any, Any]:
    level = _level(*primals[:3])
    return function(*primals), tangents[0] * ((level >= primals[3]) & (level <= primals[4]))


_fake_quantize.defjvp(partial(_straight_through, function=_fake_quantize))
_fake_quantize_wide.defjvp(partial(_straight_through, function=_fake_quantize_wide))


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
