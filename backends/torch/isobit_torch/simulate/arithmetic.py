"""`isobit.arithmetic` in torch, bit for bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_EXACT_IN_FLOAT32 = 1 << 16

FLOAT_TYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8e4m3": torch.float8_e4m3fn,
    "float8e5m2": torch.float8_e5m2,
}


def in_trace() -> bool:
    """Whether torch.jit.trace records what is called."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined,no-untyped-call]


def is_recorded(x: Tensor) -> bool:
    """Whether somebody writes down torch's operations on `x` and would miss a kernel: a compiler, a trace, a mode."""
    if torch.compiler.is_compiling() or in_trace():
        return True
    return type(x) not in (Tensor, nn.Parameter) or torch._C._len_torch_dispatch_stack() > 0


def with_gradient() -> bool:
    """Whether a gradient is to pass through; a TorchScript trace cannot hold functions of our own."""
    return torch.is_grad_enabled() and not in_trace()


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounded to a smaller float type, saturating for float8."""
    if dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        limit = torch.finfo(dtype).max
        x = x.clamp(-limit, limit)
    return x.to(dtype).to(torch.float32)


class _Cast(torch.autograd.Function):
    """`_cast`; the gradient passes straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        return _cast(x, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def work_type(q_min: int, q_max: int) -> torch.dtype:
    """The type in which positions on a grid are exact."""
    return torch.float32 if q_max - q_min < _EXACT_IN_FLOAT32 else torch.float64


def whole(zero_point: Tensor, work: torch.dtype) -> Tensor:
    """A zero point in `work`, rounded where it is learned: then it lies between two integers."""
    return zero_point.to(work).round() if zero_point.is_floating_point() else zero_point.to(work)


def grid_position(x: Tensor, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int) -> Tensor:
    """Integers of `x` in `work_type`; `scale` and `zero_point` broadcast against it.

    The division is a true one by a tensor: torch's own fake-quantize multiplies by the inverse, which rounds otherwise.
    """
    work = work_type(q_min, q_max)
    steps = x.to(torch.float32).to(work) / scale.to(work)
    return torch.clamp(torch.round(steps) + whole(zero_point, work), q_min, q_max)


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int) -> Tensor:
    """`x` rounded to the grid, without gradients; `scale` and `zero_point` broadcast against it."""
    work = work_type(q_min, q_max)
    q = grid_position(x, scale, zero_point, q_min, q_max)
    return ((q - whole(zero_point, work)) * scale.to(work)).to(torch.float32).to(x.dtype)


def cast(x: Tensor, scale: Tensor, dtype: str) -> Tensor:
    """`x` rounded to a smaller float type times a scale."""
    rounded = _Cast.apply if with_gradient() else _cast
    result: Tensor = rounded(x.to(torch.float32) / scale, FLOAT_TYPES[dtype]) * scale
    return result.to(x.dtype)
