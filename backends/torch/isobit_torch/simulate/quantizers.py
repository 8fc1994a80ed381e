"""Quantizers: small modules with the buffers ``scale`` and ``zero_point``, under one reserved name in the simulator."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from isobit.arithmetic import SMALLEST_SCALE
from isobit.encodings import Encoding, PerChannel, PerTensor
from isobit.graph import Layout
from isobit_torch.program.convert import to_array
from isobit_torch.program.layouts import to_canonical, to_native
from isobit_torch.simulate.arithmetic import cast, fake_quantize, is_recorded
from isobit_torch.simulate.cpu_kernel import run_in_parts
from isobit_torch.simulate.cuda_kernel import fused

#: The one name that the simulator adds to the user's; a float state_dict loads without it.
QUANTIZERS = "isobit_quantizers"


class Quantizer(nn.Module):
    """Rounds a tensor to the grid of an encoding. `enabled` switches it; `in_place` allows to overwrite the input."""

    __jit_unused_properties__: ClassVar = ["encoding"]  # torch.jit.trace compiles properties

    scale: Tensor
    zero_point: Tensor

    def __init__(self, encoding: Encoding, layout: Layout = ()) -> None:
        super().__init__()
        self.enabled = True
        self.in_place = False
        self.layout = layout
        self._template = encoding
        self._factors: tuple[Quantizer, ...] = ()  # a tuple, so that they are no submodules
        self._tied: tuple[Quantizer, ...] = ()
        self._is_fixed = False
        self.register_buffer("scale", torch.from_numpy(np.array(encoding.scale)))
        self.register_buffer("zero_point", torch.from_numpy(np.array(encoding.zero_point)))
        self._numbers: tuple[Any, tuple[float, float]] | None = None
        self._cache: tuple[Any, Tensor] | None = None

    # --- encodings -------------------------------------------------------------------------------------------------

    @property
    def encoding(self) -> Encoding:
        """The encoding as it is now: learned or loaded values included."""
        spec = self._template.spec
        held = self._product() if self._factors else self.scale
        scale = np.maximum(np.abs(to_array(held).astype(np.float32)), np.float32(SMALLEST_SCALE))
        zero = np.rint(to_array(self.zero_point)).astype(np.int32)
        if spec.is_integer:
            zero = np.clip(zero, spec.q_min, spec.q_max)
        if np.array_equal(scale, self._template.scale) and np.array_equal(zero, self._template.zero_point):
            return self._template
        return replace(self._template, scale=scale, zero_point=zero, multiplier=None, channel_scale=None)

    def set(self, encoding: Encoding, device: torch.device | None = None) -> None:
        """Take another encoding; learned parameters become buffers again."""
        self.learn(False)
        self._template = encoding
        device = self.scale.device if device is None else device
        self.scale = torch.from_numpy(np.array(encoding.scale)).to(device)
        self.zero_point = torch.from_numpy(np.array(encoding.zero_point)).to(device)
        self._numbers = self._cache = None

    def relate(
        self, factors: tuple[Quantizer, ...] = (), tied: tuple[Quantizer, ...] = (), *, is_fixed: bool = False
    ) -> None:
        """Let the scale be the product of the scales of `factors`; share the grid with `tied`; or never learn one.

        Without arguments the grid is its own from now on, as it is.
        """
        self._settle()
        self._factors, self._tied, self._is_fixed = factors, tied, is_fixed

    def learn(self, on: bool = True, *, zero_point: bool = False) -> None:
        """Turn the scale (and an asymmetric grid's zero point) into parameters for training, or back.

        Quantizers that share the grid learn one parameter together. Fixed scales, and those that are products of two
        others, are none.
        """
        if on and (self._is_fixed or self._factors):
            return
        self._learn(on, zero_point)
        for other in self._tied:
            other._learn(on, zero_point)
            for name in ("scale", "zero_point") if on else ():
                value = getattr(self, name)
                if isinstance(value, nn.Parameter):
                    other.register_parameter(name, value)

    def _learn(self, on: bool, zero_point: bool) -> None:
        for name, grid in zip(("scale", "zero_point"), self._grid(), strict=True):
            value = getattr(self, name)
            as_parameter = on and (name == "scale" or (zero_point and not self._template.spec.symmetric))
            if as_parameter == isinstance(value, nn.Parameter):
                continue
            delattr(self, name)
            if as_parameter:
                self.register_parameter(name, nn.Parameter(value.detach().to(torch.float32)))
            else:
                detached = grid.detach()
                self.register_buffer(name, detached if name == "scale" else detached.round().to(torch.int32))

    # --- computing -------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """`x` on the grid; `x` itself where the quantizer is off."""
        if not self.enabled:
            return x
        if is_recorded(x):
            return self._compute(x)
        if torch.is_grad_enabled() and (x.requires_grad or self._is_learned()):
            return self._compute(x)
        if x.device.type == "cpu" and x.dtype == torch.float32 and self._is_simple():
            return self._in_place(x if self.in_place else x.clone())
        return self._compute(x)

    def _is_simple(self) -> bool:
        spec = self._template.spec
        return spec.is_integer and spec.bits <= 16 and self.scale.ndim == 0

    def _in_place(self, x: Tensor) -> Tensor:
        """The kernel runs over memory in any dense order."""
        flat = _flat(x)
        if flat is None:
            return self._compute(x)
        spec = self._template.spec
        numbers = (*self._scalars(), spec.q_min, spec.q_max)
        run_in_parts(flat.detach().numpy(), tuple(np.float32(number) for number in numbers))
        return x

    def _scalars(self) -> tuple[float, float]:
        key = (id(self.scale), self.scale._version, id(self.zero_point), self.zero_point._version)
        if self._numbers is None or self._numbers[0] != key:
            scale, zero = self._grid()
            self._numbers = key, (float(scale), float(round(float(zero))))
        return self._numbers[1]

    def _compute(self, x: Tensor) -> Tensor:
        values = to_canonical(x, self.layout)
        result = fused(values, *self._grid(), self._template, self.in_place and not self.layout)
        if result is None:
            result = self._expression(values)
        return to_native(result, self.layout, x)

    def _expression(self, values: Tensor) -> Tensor:
        """The reference in torch's operations, on any device and with gradients."""
        spec = self._template.spec
        scale, zero = self._grid()
        if scale.ndim:
            scale, zero = self._broadcast(scale, values), self._broadcast(zero, values)
        if spec.is_integer:
            return fake_quantize(values, scale, zero, spec.q_min, spec.q_max)
        return cast(values, scale, spec.dtype)

    def _grid(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point as `encoding` has them: training may carry learned ones past zero and out of range."""
        scale, zero, spec = self.scale, self.zero_point, self._template.spec
        if self._factors:
            return self._product(), zero
        if isinstance(scale, nn.Parameter):
            scale = scale.abs().clamp(min=SMALLEST_SCALE)
        if isinstance(zero, nn.Parameter):
            zero = zero.clamp(spec.q_min, spec.q_max)
        return scale, zero

    def _product(self) -> Tensor:
        """The scale that follows from others, as `isobit.encodings.relations` has it."""
        source, weight = (factor._grid()[0] for factor in self._factors)
        return (source * weight).clamp(min=SMALLEST_SCALE).to(self.zero_point.device)

    def _settle(self) -> None:
        """Hold the scale that follows from others."""
        if self._factors:
            with torch.no_grad():
                self.scale.copy_(self._product())

    def _is_learned(self) -> bool:
        return self.scale.requires_grad or any(factor.scale.requires_grad for factor in self._factors)

    def _broadcast(self, grid: Tensor, values: Tensor) -> Tensor:
        """Scales in a shape that broadcasts against the tensor."""
        axis, granularity = self._template.axis, self._template.spec.granularity
        if isinstance(granularity, PerTensor) or axis is None:
            return grid
        if isinstance(granularity, PerChannel):
            return grid.reshape([-1 if i == axis else 1 for i in range(values.ndim)])
        return grid.repeat_interleave(values.shape[axis] // grid.shape[axis], axis)

    # --- state -----------------------------------------------------------------------------------------------------

    def _apply(self, fn: Any, recurse: bool = True) -> Quantizer:
        """Follow devices, never element types: a scale is float32 in a half-precision model too."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for holder in (self._buffers, self._parameters):
            for name, value in holder.items():
                dtype = torch.int32 if name == "zero_point" and holder is self._buffers else torch.float32
                if value is not None and value.dtype != dtype:
                    value.data = value.data.to(dtype)
        self._numbers = self._cache = None
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Save the scale as it is now."""
        self._settle()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """A state_dict of the float model says nothing of quantizers, and none of them is missing then."""
        if any(key.startswith(prefix) for key in state_dict):
            super()._load_from_state_dict(
                state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
            )
            if not isinstance(self.scale, nn.Parameter):  # it may have been one when it was saved
                self.scale.abs_().clamp_(min=SMALLEST_SCALE)
            self._numbers = self._cache = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Quantizer:
        copied = type(self)(self._template, self.layout)
        memo[id(self)] = copied
        copied.enabled, copied.in_place, copied.training = self.enabled, self.in_place, self.training
        for name in ("scale", "zero_point"):
            value = getattr(self, name)
            delattr(copied, name)
            if isinstance(value, nn.Parameter):
                copied.register_parameter(name, copy.deepcopy(value, memo))
            else:
                copied.register_buffer(name, value.detach().clone())
        copied._factors, copied._tied = copy.deepcopy((self._factors, self._tied), memo)
        copied._is_fixed = self._is_fixed
        return copied

    def extra_repr(self) -> str:
        """The format, for printing."""
        state = "" if self.enabled else ", off"
        return f"{self._template.spec}{state}"


class WeightQuantizer(Quantizer):
    """The quantizer of a constant: its result is kept until the constant or the grid changes."""

    def forward(self, x: Tensor) -> Tensor:
        """`x` on the grid."""
        if not self.enabled:
            return x
        if is_recorded(x) or (torch.is_grad_enabled() and (x.requires_grad or self._is_learned())):
            return self._compute(x)
        key = (
            id(x), x.data_ptr(), x._version, x.dtype, x.device, _checksum(x),
            self.zero_point._version, *((id(q.scale), q.scale._version) for q in self._factors or (self,)),
        )  # fmt: skip
        if self._cache is None or self._cache[0] != key:
            self._cache = key, self._compute(x)
        return self._cache[1]


def _checksum(x: Tensor) -> int:
    """The sum of a tensor's bits on the CPU: a write through ``x.data`` is not counted as a version. 0 elsewhere.

    On other devices it would make the host wait for every weight.
    """
    flat = _flat(x) if x.device.type == "cpu" and x.dtype == torch.float32 else None
    if flat is None:
        return 0
    bits = flat.detach().numpy()
    pairs = bits.size - bits.size % 2  # two at a time is twice as fast
    return int(bits[:pairs].view(np.int64).sum()) + int(bits[pairs:].view(np.int32).sum())


def _flat(x: Tensor) -> Any:
    """The memory of a tensor as one axis, or None where it has holes or overlaps."""
    if x.is_contiguous():
        return x.view(-1)
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).view(-1)
    strides = x.stride()
    order = sorted(range(x.ndim), key=lambda axis: -strides[axis])
    moved = x.permute(order)
    return moved.view(-1) if moved.is_contiguous() else None
