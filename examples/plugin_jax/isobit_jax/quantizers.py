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
from isobit.encodings import Encoding
from isobit.graph import Site
from isobit.graph_backend import GraphModel

#: Scale, zero point, lowest and highest level, and the switch: what changes without compiling again.
Numbers = tuple[Any, ...]


def kind_of(encoding: Encoding) -> str:
    """What is compiled in: ``int``, ``wide`` or a float type."""
    spec = encoding.spec
    if not spec.is_integer:
        return spec.dtype
    return "int" if spec.q_max - spec.q_min <= 0xFFFF else "wide"


def numbers_of(model: GraphModel, site: Site) -> Numbers:
    """The numbers of the quantizer at a site."""
    (scale, zero_point), spec = model.grid(site), model.quantizers[site].spec
    low, high = (spec.q_min, spec.q_max) if spec.is_integer else (0, 0)
    numbers = (jnp.asarray(n, jnp.float32) for n in (zero_point, low, high))
    return jnp.asarray(scale), *numbers, jnp.asarray(site not in model.off)


def apply(kind: str, numbers: Numbers, x: Any) -> Any:
    """`x` on the grid of an encoding."""
    scale, zero_point, low, high, on = numbers
    # Behind a barrier XLA cannot see that a divisor is repeated, for which it would multiply by the inverse.
    scale = lax.optimization_barrier(jnp.broadcast_to(scale, x.shape))
    if kind in ("int", "wide"):
        fake_quantize = _fake_quantize if kind == "int" else _fake_quantize_wide
        return jnp.where(on, fake_quantize(x, scale, zero_point, low, high), x)
    return jnp.where(on, _cast(x, scale, kind), x)


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
    small, values = arithmetic.float_type(dtype), x / scale
    if dtype.startswith("float8"):
        limit = arithmetic.largest_float(dtype)
        values = jnp.clip(values, -limit, limit)
    # The barrier keeps XLA from taking the two casts away, which it may where precision is only gained.
    return lax.optimization_barrier(values.astype(small)).astype(jnp.float32) * scale


@_cast.defjvp
def _cast_straight_through(dtype: str, primals: Any, tangents: Any) -> tuple[Any, Any]:
    return _cast(*primals, dtype), tangents[0]
