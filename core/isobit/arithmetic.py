"""The reference arithmetic of quantization: the rule of ONNX QuantizeLinear and DequantizeLinear.

``q = clip(rint(x / scale) + zero_point, q_min, q_max)`` and ``y = (q - zero_point) * scale``, in float32,
with true division and ties rounded to even. Every backend's quantizer equals these functions bit for bit.
Grids wider than 16 bits (int32 bias) are computed in float64, where every level is exact.

Source: ONNX operator specification, QuantizeLinear-21 and DequantizeLinear-21.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Scales below the smallest normal float32 are refused: some runtimes flush subnormals to zero.
SMALLEST_SCALE = float(np.finfo(np.float32).tiny)

_EXACT_IN_FLOAT32 = 1 << 16


def quantize(x: ArrayLike, scale: ArrayLike, zero_point: ArrayLike, q_min: int, q_max: int) -> NDArray[np.int32]:
    """Integers of `x` on the grid; `scale` and `zero_point` must broadcast against `x`.

    Values outside the grid saturate. NaN is outside the contract and has no defined result.
    """
    q = _grid_position(x, scale, zero_point, q_min, q_max)
    return np.asarray(q, np.int32)


def dequantize(q: ArrayLike, scale: ArrayLike, zero_point: ArrayLike) -> NDArray[np.float32]:
    """Real values of the integers `q`, float32."""
    steps = np.asarray(q, np.int64) - np.asarray(zero_point, np.int64)
    is_wide = bool(np.any(np.abs(steps) >= 1 << 24))
    work = np.float64 if is_wide else np.float32
    return np.asarray(steps.astype(work) * np.asarray(scale, work), np.float32)


def fake_quantize(x: ArrayLike, scale: ArrayLike, zero_point: ArrayLike, q_min: int, q_max: int) -> NDArray[np.float32]:
    """`x` quantized and dequantized: the nearest values of the grid, float32."""
    q = _grid_position(x, scale, zero_point, q_min, q_max)
    steps = q - np.asarray(zero_point, q.dtype)
    return np.asarray(steps * np.asarray(scale, q.dtype), np.float32)


def _grid_position(x: ArrayLike, scale: ArrayLike, zero_point: ArrayLike, q_min: int, q_max: int) -> NDArray[Any]:
    """Integral floats in ``[q_min, q_max]``, in the working precision of the grid."""
    work: type[np.float32] | type[np.float64]
    work = np.float32 if q_max - q_min < _EXACT_IN_FLOAT32 else np.float64
    values = np.asarray(np.asarray(x, np.float32), work)
    with np.errstate(over="ignore"):  # a huge x / scale is infinite, and saturates like any other
        q = np.rint(values / np.asarray(scale, work))
    # The zero point is added even when it is 0: it turns the -0.0 of a rounded small negative into 0.0.
    q = q + np.asarray(zero_point, work)
    return np.asarray(np.clip(q, work(q_min), work(q_max)))


def cast(x: ArrayLike, dtype: str) -> NDArray[np.float32]:
    """`x` rounded to a smaller float type and back; float8 saturates, float16 and bfloat16 overflow to infinity.

    `dtype` is ``float16``, ``bfloat16``, ``float8e4m3`` or ``float8e5m2``.
    Source: ONNX operator specification, Cast-21 with ``saturate=1``.
    """
    small = float_type(dtype)
    values = np.asarray(x, np.float32)
    if dtype.startswith("float8"):
        # ml_dtypes turns overflow into NaN or infinity; the ONNX rule saturates.
        limit = largest_float(dtype)
        values = np.clip(values, -limit, limit)
    with np.errstate(over="ignore"):
        return values.astype(small).astype(np.float32)


def largest_float(dtype: str) -> float:
    """The largest finite value of a smaller float type."""
    import ml_dtypes

    finfo: Any = ml_dtypes.finfo  # untyped
    return float(finfo(float_type(dtype)).max)


def float_type(dtype: str) -> np.dtype[Any]:
    """The NumPy type that stores a smaller float format."""
    import ml_dtypes  # heavier than needed by those who only use integers

    types: dict[str, np.dtype[Any]] = {
        "float16": np.dtype(np.float16),
        "bfloat16": np.dtype(ml_dtypes.bfloat16),
        "float8e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
        "float8e5m2": np.dtype(ml_dtypes.float8_e5m2),
    }
    return types[dtype]
