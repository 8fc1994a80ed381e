"""Gradients of rounding to a grid, and the grid that is learned, as `isobit.encodings.learned_grid` has them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from isobit.arithmetic import SMALLEST_SCALE
from isobit.encodings.learned_grid import LOG_BOUND
from isobit_torch.simulate.arithmetic import fake_quantize, in_trace, is_recorded, work_type
from isobit_torch.simulate.cpu_gradient import cpu_backward, cpu_forward


class FakeQuantize(torch.autograd.Function):
    """`x` rounded to a grid that broadcasts against it, with gradients by `x`, the scale and the zero point.

    With `rounding` off the error of rounding moves no scale, only what the grid cuts off.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor, q_min: int, q_max: int, rounding: bool) -> Tensor:
        """`x` on the grid."""
        ctx.save_for_backward(x, scale, zero)
        ctx.settings = (q_min, q_max, rounding)
        result = None if is_recorded(x) else cpu_forward(x, scale, zero, q_min, q_max)
        if result is None:
            result = fake_quantize(x, scale, zero, q_min, q_max)
        return result

    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients by `x`, scale and zero point, where they are asked for."""
        x, scale, zero = ctx.saved_tensors
        q_min, q_max, rounding = ctx.settings
        needs_x, needs_scale, needs_zero = ctx.needs_input_grad[:3]
        (upstream,) = upstreams
        if not is_recorded(x) and not torch.is_grad_enabled():  # the kernel cuts the graph that second gradients need
            found = cpu_backward(x, upstream, scale, zero, q_min, q_max, rounding, needs_scale or needs_zero)
            if found is not None:
                by_x, by_scale, by_zero = found
                return by_x, by_scale if needs_scale else None, by_zero if needs_zero else None, None, None, None
        work = work_type(q_min, q_max)
        values, steps, offset = x.to(torch.float32).to(work), scale.to(work), zero.to(work).round()
        ratio = values / steps
        position = ratio.round() + offset
        inside = (position >= q_min) & (position <= q_max)
        passed = torch.where(inside, upstream, 0) if needs_x else None
        summed_scale = summed_zero = None
        if needs_scale:
            level = position.clamp(q_min, q_max) - offset
            within = level - ratio if rounding else torch.zeros_like(level)
            by_scale = upstream.to(work) * torch.where(inside, within, level)
            summed_scale = by_scale.sum_to_size(scale.shape).to(scale.dtype)
        if needs_zero:
            cut = torch.where(inside, 0, upstream.to(work)) * -steps
            summed_zero = cut.sum_to_size(zero.shape).to(zero.dtype)
        return passed, summed_scale, summed_zero, None, None, None


class _Scale(torch.autograd.Function):
    """The scale of a logarithmic parameter."""

    @staticmethod
    def forward(ctx: Any, log_scale: Tensor, start: Tensor, factor: Tensor, unit: Tensor) -> Tensor:
        exponent = unit * log_scale
        scale = _grown(exponent, start)
        ctx.save_for_backward(exponent, scale, factor)
        return scale

    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Tensor | None, ...]:
        exponent, scale, factor = ctx.saved_tensors
        return _inward(upstreams[0] * scale * factor, exponent, -LOG_BOUND, LOG_BOUND), None, None, None


class _ZeroPoint(torch.autograd.Function):
    """The zero point of an offset, an integer that is stored as a float."""

    @staticmethod
    def forward(ctx: Any, offset: Tensor, start: Tensor, factor: Tensor, levels: int, q_min: int, q_max: int) -> Tensor:
        moved = start + levels * offset
        ctx.save_for_backward(moved, factor)
        ctx.settings = (levels, q_min, q_max)
        return moved.round().clamp(q_min, q_max)

    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Tensor | None, ...]:
        moved, factor = ctx.saved_tensors
        levels, q_min, q_max = ctx.settings
        return _inward(upstreams[0] * levels * factor, moved, q_min, q_max), None, None, None, None, None


def _inward(gradient: Tensor, value: Tensor, low: float, high: float) -> Tensor:
    """Without what is not finite, and without what would carry a value further beyond its bounds."""
    outward = ((value <= low) & (gradient > 0)) | ((value >= high) & (gradient < 0))
    finite = torch.nan_to_num(gradient, 0.0, 0.0, 0.0)
    return torch.where(outward, torch.zeros_like(finite), finite)


def _grown(exponent: Tensor, start: Tensor) -> Tensor:
    return (start * exponent.clamp(-LOG_BOUND, LOG_BOUND).exp()).clamp(min=SMALLEST_SCALE)


def learned_scale(log_scale: Tensor, start: Tensor, factor: Tensor, unit: Tensor) -> Tensor:
    """``start * exp(unit * log_scale)`` within bounds; `factor` scales the gradient."""
    if in_trace():
        return _grown(unit * log_scale, start)
    scale: Tensor = _Scale.apply(log_scale, start, factor, unit)  # type: ignore[no-untyped-call]
    return scale


def learned_zero_point(offset: Tensor, start: Tensor, factor: Tensor, levels: int, q_min: int, q_max: int) -> Tensor:
    """``start + levels * offset`` as an integer of the grid; `factor` scales the gradient."""
    if in_trace():
        return (start + levels * offset).round().clamp(q_min, q_max)
    zero: Tensor = _ZeroPoint.apply(offset, start, factor, levels, q_min, q_max)  # type: ignore[no-untyped-call]
    return zero
