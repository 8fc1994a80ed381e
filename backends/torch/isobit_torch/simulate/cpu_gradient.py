"""Fake quantization in training on the CPU: one pass over memory there, and one back with all gradients.

For per-tensor grids of at most 16 bits and float32 values; the bits of the result are those of the reference.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isobit.threads import run_on_threads
from isobit_torch.simulate.cpu_kernel import run_in_parts

_PART = 1 << 16
_CHUNK = 1 << 10  # values whose gradients are summed in float32 before they are added to a sum in float64
_ARRAY = "float32[::1]"


@numba.njit(
    f"void({_ARRAY}, {_ARRAY}, {_ARRAY}, float32, float32, float32, float32)",
    cache=True, nogil=True, error_model="numpy",
)  # fmt: skip
def _pass_inside(
    x: NDArray[np.float32],
    upstream: NDArray[np.float32],
    result: NDArray[np.float32],
    scale: np.float32,
    zero: np.float32,
    q_min: np.float32,
    q_max: np.float32,
) -> None:
    """The gradient by `x` alone."""
    for i in range(x.size):
        position = np.float32(np.rint(x[i] / scale)) + zero
        inside = (position >= q_min) & (position <= q_max)
        result[i] = upstream[i] if inside else np.float32(0)


@numba.njit(
    f"void({_ARRAY}, {_ARRAY}, {_ARRAY}, float32, float32, float32, float32, float32, float64[::1])",
    cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "nsz"},
)  # fmt: skip
def _pass_and_sum(
    x: NDArray[np.float32],
    upstream: NDArray[np.float32],
    result: NDArray[np.float32],
    scale: np.float32,
    zero: np.float32,
    q_min: np.float32,
    q_max: np.float32,
    rounding: np.float32,
    sums: NDArray[np.float64],
) -> None:
    """The gradient by `x`; `sums` get those by the scale, and, divided by minus the scale, by the zero point."""
    low, high = q_min - zero, q_max - zero
    for start in range(0, x.size, _CHUNK):
        stop = min(start + _CHUNK, x.size)
        _pass_inside(x[start:stop], upstream[start:stop], result[start:stop], scale, zero, q_min, q_max)
        # A loop of its own: beside a store, where the arrays lie in memory would decide whether a chunk is summed in
        # vectors, and so the last bits of its sums from step to step.
        by_scale, cut = np.float32(0), np.float32(0)
        for i in range(start, stop):
            ratio = x[i] / scale
            step = np.float32(np.rint(ratio))
            rest = upstream[i] - result[i]
            by_scale += result[i] * ((step - ratio) * rounding) + rest * min(max(step, low), high)
            cut += rest
        sums[0] += by_scale
        sums[1] += cut


def cpu_forward(x: Tensor, scale: Tensor, zero: Tensor, q_min: int, q_max: int) -> Tensor | None:
    """`x` on the grid, in memory of its own; None where the kernel does not apply."""
    if not _applies(x, scale, q_min, q_max):
        return None
    result = x.detach().clone(memory_format=torch.preserve_format)
    flat = _flat(result)
    if flat is None:
        return None
    numbers = (float(scale), round(float(zero)), q_min, q_max)
    run_in_parts(flat, tuple(np.float32(number) for number in numbers))
    return result


def cpu_backward(
    x: Tensor, upstream: Tensor, scale: Tensor, zero: Tensor, q_min: int, q_max: int, rounding: bool, sums: bool
) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
    """Gradients by `x`, and with `sums` by scale and zero point; None where the kernel does not apply."""
    if not _applies(x, scale, q_min, q_max) or upstream.dtype != torch.float32:
        return None
    flat = _flat(x)
    if flat is None:
        return None
    if upstream.stride() != x.stride():
        upstream = torch.empty_like(x).copy_(upstream)
    result = torch.empty_like(x)
    arrays = (flat, _flat(upstream), _flat(result))
    step = float(scale)
    grid = [np.float32(number) for number in (step, round(float(zero)), q_min, q_max)]
    threads = torch.get_num_threads()
    count = max(1, min(threads, flat.size // _PART))
    edges = [flat.size * i // count for i in range(count + 1)]
    parts: list[tuple[Any, ...]] = [(*(array[a:b] for array in arrays), *grid) for a, b in pairwise(edges)]
    if not sums:
        run_on_threads(_pass_inside, parts, threads)
        return result, None, None
    totals = np.zeros((count, 2))
    calls = [(*part, np.float32(rounding), totals[i]) for i, part in enumerate(parts)]
    run_on_threads(_pass_and_sum, calls, threads)
    by_scale, cut = totals.sum(0)
    return result, scale.new_tensor(by_scale), scale.new_tensor(-cut * step)


def _applies(x: Tensor, scale: Tensor, q_min: int, q_max: int) -> bool:
    simple = scale.ndim == 0 and q_max - q_min < 1 << 16
    return simple and x.device.type == "cpu" and x.dtype == torch.float32


def _flat(x: Tensor) -> Any:
    """The memory of a tensor as one axis of NumPy's, or None where it has holes or overlaps."""
    flat = dense(x)
    return None if flat is None else flat.detach().numpy()


def dense(x: Tensor) -> Tensor | None:
    """The memory of a tensor as one axis, or None where it has holes or overlaps."""
    if x.is_contiguous():
        return x.view(-1)
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).view(-1)
    strides = x.stride()
    order = sorted(range(x.ndim), key=lambda axis: -strides[axis])
    moved = x.permute(order)
    return moved.view(-1) if moved.is_contiguous() else None
