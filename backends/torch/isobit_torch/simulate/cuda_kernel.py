"""Fake quantization on a CUDA device: one triton kernel where that gives the reference's bits, else torch's operations.

torch's operations on CUDA are exact too (its division by a tensor is a true one); they are six passes over the tensor.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from isobit.encodings import Encoding, PerChannel, PerTensor
from isobit_torch.simulate.arithmetic import fake_quantize, is_recorded

#: Where the kernel runs. ROCm's triton compiler is another one, whose code was never compared with the reference.
DEVICES: frozenset[str] = frozenset({"cuda"}) if torch.version.hip is None else frozenset()

_HAS_TRITON = find_spec("triton") is not None
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_BLOCK = 1024
_WIDE = (1 << 31) - _BLOCK  # offsets beyond this do not fit in int32


def fused(x: Tensor, scale: Tensor, zero_point: Tensor, encoding: Encoding, in_place: bool) -> Tensor | None:
    """`x` on the grid by the kernel, in its own memory where `in_place` allows; None where the kernel does not apply.

    It applies to tensors on CUDA devices, integer grids of at most 16 bits, where nobody asks for a gradient. `scale`
    and `zero_point` have the shapes of `encoding` and stay on the device: nothing waits for it.
    """
    spec = encoding.spec
    if x.device.type not in DEVICES or not _HAS_TRITON or x.dtype not in _FLOATS:
        return None
    if not spec.is_integer or spec.bits > 16 or zero_point.dtype != torch.int32 or scale.device != x.device:
        return None
    if torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad):
        return None
    axis = -1 if isinstance(spec.granularity, PerTensor) or encoding.axis is None else encoding.axis
    block = axis >= 0 and not isinstance(spec.granularity, PerChannel)
    if torch.compiler.is_compiling():
        # Inductor's own code divides approximately and contracts; it does not look into this operation.
        if torch.compiler.is_exporting() or block:
            return None
        compiled: Tensor = torch.ops.isobit.fake_quantize(x, scale, zero_point, spec.q_min, spec.q_max, axis)
        return compiled
    if is_recorded(x) or not _is_dense(x) or not usable(x.device):
        return None
    if block:
        inner = _block_length(x, scale, axis)
        if inner is None:
            return None
    else:
        inner = x.stride(axis) if axis >= 0 else 1
    result = x if in_place else torch.empty_like(x)
    _launch(x, result, scale, zero_point, (spec.q_min, spec.q_max), inner)
    return result


@cache
def usable(device: torch.device) -> bool:
    """Whether the kernel compiles and runs on this device, and gives the bits of torch's operations on ties.

    Tried once a process and device; a warning says why not.
    """
    scale = torch.from_numpy(np.array([0.1, 3.0], np.float32))  # on the CPU, whatever torch's defaults are
    zero_point = torch.from_numpy(np.array([0, -7], np.int32))
    ties = torch.from_numpy(np.arange(-139.5, 140, dtype=np.float32))[:, None] * scale
    x = torch.cat([ties, torch.nextafter(ties, ties + 1), torch.nextafter(ties, ties - 1)])
    expected = fake_quantize(x, scale, zero_point, -128, 127)
    try:
        result = torch.empty_like(x, device=device)
        _launch(x.to(device), result, scale.to(device), zero_point.to(device), (-128, 127), 1)
        result = result.cpu()
    except Exception as error:  # no C compiler, an unknown architecture, another triton: all end in torch's operations
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
    else:
        if torch.equal(result.view(torch.int32), expected.view(torch.int32)):
            return True
        reason = "its bits differ from the reference"
    warnings.warn(
        f"the fused quantization kernel is not used on {device} ({reason}); torch's own operations take its place, "
        "with the same bits but slower",
        RuntimeWarning,
        stacklevel=2,
    )
    return False


def _launch(x: Tensor, result: Tensor, scale: Tensor, zero_point: Tensor, bounds: tuple[int, int], inner: int) -> None:
    """Run the kernel over the memory of a dense tensor, whatever the order of its axes.

    In memory the index along an axis is ``offset // stride % size``: `inner` is the stride of the axis of the scales.
    """
    from isobit_torch.simulate.triton_kernel import fake_quantize_kernel

    count, scales = x.numel(), scale.numel()
    low, high = (float(bound) for bound in bounds)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        fake_quantize_kernel[(-(-count // _BLOCK),)](
            x, result, scale.contiguous(), zero_point.contiguous(), low, high, count, max(1, inner), scales,
            several=scales > 1, wide=count > _WIDE, block=_BLOCK, enable_fp_fusion=False,
        )  # fmt: skip


def _is_dense(x: Tensor) -> bool:
    """Whether there are elements that fill one stretch of memory, each its own place, in any order of axes."""
    if x.numel() == 0:
        return False
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _block_length(x: Tensor, scale: Tensor, axis: int) -> int | None:
    """Elements that share a scale, where blocks follow each other in memory: along the last axis, the others whole."""
    last = axis == x.ndim - 1 and scale.ndim == x.ndim and scale.shape[:-1] == x.shape[:-1]
    return x.shape[-1] // scale.shape[-1] if last and x.is_contiguous() else None


@torch.library.custom_op("isobit::fake_quantize", mutates_args=())
def _fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int, axis: int) -> Tensor:
    """What a compiled model calls: per tensor with `axis` -1, else per channel."""
    result = torch.empty_like(x)
    if _is_dense(x) and usable(x.device):
        _launch(x, result, scale, zero_point, (q_min, q_max), x.stride(axis) if axis >= 0 else 1)
        return result
    view = [-1 if i == axis else 1 for i in range(x.ndim)] if axis >= 0 else []
    return result.copy_(fake_quantize(x, scale.reshape(view), zero_point.reshape(view), q_min, q_max))


@_fake_quantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int, axis: int) -> Tensor:
    return torch.empty_like(x)
