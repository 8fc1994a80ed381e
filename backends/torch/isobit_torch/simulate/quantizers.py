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
from isobit.encodings import Encoding, LearnedGrid, PerChannel, PerTensor
from isobit.graph import Layout
from isobit_torch.program.convert import to_array
from isobit_torch.program.layouts import to_canonical, to_native
from isobit_torch.simulate.arithmetic import cast, fake_quantize, is_recorded, with_gradient
from isobit_torch.simulate.cpu_gradient import dense
from isobit_torch.simulate.cpu_kernel import run_in_parts
from isobit_torch.simulate.cuda_kernel import fused
from isobit_torch.simulate.learned_grid import FakeQuantize, learned_scale, learned_zero_point

#: The one name that the simulator adds to the user's; a float state_dict loads without it.
QUANTIZERS = "isobit_quantizers"

_HELD = ("scale", "zero_point")


class Quantizer(nn.Module):
    """Rounds a tensor to the grid of an encoding. `enabled` switches it; `in_place` allows to overwrite the input."""

    __jit_unused_properties__: ClassVar = ["encoding", "scale", "zero_point"]  # torch.jit.trace compiles properties

    def __init__(self, encoding: Encoding, layout: Layout = ()) -> None:
        super().__init__()
        self.enabled = True
        self.in_place = False
        self.keeps_zeros = False  # what is zero gets no gradient, so that a sparse weight stays sparse
        self.layout = layout
        self._template = encoding
        self._related: tuple[Quantizer, ...] = ()  # a tuple, so that they are no submodules
        self._learned: LearnedGrid | None = None
        self.register_parameter("log_scale", None)
        self.register_parameter("offset", None)
        # `scale` and `zero_point` are properties: what is learned moves them
        self._buffers["scale"] = torch.from_numpy(np.array(encoding.scale))
        self._buffers["zero_point"] = torch.from_numpy(np.array(encoding.zero_point))
        self._numbers: tuple[Any, tuple[float, float]] | None = None
        self._cache: tuple[Any, Tensor] | None = None

    @property
    def scale(self) -> Tensor:
        """The scale as it is now, float32."""
        return self._grid()[0].detach()

    @property
    def zero_point(self) -> Tensor:
        """The zero point as it is now, int32."""
        return self._grid()[1].detach().to(torch.int32)

    # --- encodings -------------------------------------------------------------------------------------------------

    @property
    def encoding(self) -> Encoding:
        """The encoding as it is now: learned or loaded values included."""
        scale, zero = to_array(self.scale), to_array(self.zero_point)
        if np.array_equal(scale, self._template.scale) and np.array_equal(zero, self._template.zero_point):
            return self._template
        return replace(self._template, scale=scale, zero_point=zero, multiplier=None, channel_scale=None)

    def set(self, encoding: Encoding, device: torch.device | None = None) -> None:
        """Take another encoding, which is not learned."""
        self.learn(None)
        device = self._held("scale").device if device is None else device
        self._template = encoding
        self._buffers["scale"] = torch.from_numpy(np.array(encoding.scale)).to(device)
        self._buffers["zero_point"] = torch.from_numpy(np.array(encoding.zero_point)).to(device)
        self._numbers = self._cache = None

    def relate(self, *related: Quantizer) -> None:
        """Have the grid of one other quantizer, or as scale the product of those of two.

        Without arguments the grid is its own from now on, as it is.
        """
        self._settle()
        self._related = related

    def learn(self, grid: LearnedGrid | None) -> None:
        """Learn the grid from where it is now, or keep it as it is."""
        self._settle()
        self._learned = grid
        for name in ("start_scale", "start_zero_point", "factor", "unit"):
            self._buffers.pop(name, None)
        self.log_scale = self.offset = None
        if grid is None:
            return
        scale = self._held("scale")
        self.register_buffer("start_scale", scale.clone())
        self.register_buffer("start_zero_point", self._held("zero_point").clone())
        self.register_buffer("factor", torch.from_numpy(np.array(grid.factor)).to(scale.device))
        self.register_buffer("unit", torch.tensor(grid.unit, device=scale.device))
        self.log_scale = nn.Parameter(torch.zeros_like(scale))
        if grid.zero_point_levels:
            self.offset = nn.Parameter(torch.zeros_like(scale))

    # --- computing -------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """`x` on the grid; `x` itself where the quantizer is off."""
        x = self._sparse(x)
        if not self.enabled:
            return x
        if is_recorded(x):
            return self._compute(x)
        if torch.is_grad_enabled() and (x.requires_grad or self._is_learned()):
            return self._compute(x)
        if x.device.type == "cpu" and x.dtype == torch.float32 and self._is_simple():
            return self._in_place(x if self.in_place else x.clone())
        return self._compute(x)

    def _sparse(self, x: Tensor) -> Tensor:
        """`x`, whose zeros get no gradient where they are kept."""
        if self.keeps_zeros and torch.is_grad_enabled() and x.requires_grad and not is_recorded(x):
            return x * (x != 0)
        return x

    def _is_simple(self) -> bool:
        spec = self._template.spec
        return spec.is_integer and spec.bits <= 16 and self._held("scale").ndim == 0

    def _in_place(self, x: Tensor) -> Tensor:
        """The kernel runs over memory in any dense order."""
        flat = dense(x)
        if flat is None:
            return self._compute(x)
        spec = self._template.spec
        numbers = (*self._scalars(), spec.q_min, spec.q_max)
        run_in_parts(flat.detach().numpy(), tuple(np.float32(number) for number in numbers))
        return x

    def _scalars(self) -> tuple[float, float]:
        key = self._grid_version()
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
        if not spec.is_integer:
            return cast(values, scale, spec.dtype)
        if not with_gradient() or not (values.requires_grad or scale.requires_grad):
            return fake_quantize(values, scale, zero, spec.q_min, spec.q_max)
        leader = self._related[0] if len(self._related) == 1 else self
        rounding = leader._learned is None or leader._learned.rounding
        result: Tensor = FakeQuantize.apply(values, scale, zero, spec.q_min, spec.q_max, rounding)  # type: ignore[no-untyped-call]
        return result

    def _held(self, name: str) -> Tensor:
        value = self._buffers[name]
        assert value is not None
        return value

    def _grid(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point as `encoding` has them."""
        if len(self._related) == 1:
            return self._related[0]._grid()
        if self._related:
            source, weight = (other._grid()[0].detach() for other in self._related)
            zero = self._held("zero_point")
            return (source * weight).clamp(min=SMALLEST_SCALE).to(zero.device), zero
        learned = self._learned
        if learned is None or self.log_scale is None:
            return self._held("scale"), self._held("zero_point")
        factor, zero = self._held("factor"), self._held("start_zero_point")
        scale = learned_scale(self.log_scale, self._held("start_scale"), factor, self._held("unit"))
        if self.offset is not None:
            spec = self._template.spec
            zero = learned_zero_point(self.offset, zero, factor, learned.zero_point_levels, spec.q_min, spec.q_max)
        return scale, zero

    def _grid_version(self) -> tuple[Any, ...]:
        """Another one whenever the grid has changed.

        What is learned counts by its bits: fused optimizers, and writes through ``.data``, leave the version as it was.
        """
        if self._related:
            return tuple(other._grid_version() for other in self._related)
        learned = tuple(_bits(part) for part in (self.log_scale, self.offset) if part is not None)
        held = tuple((id(part), part._version) for part in self._buffers.values() if part is not None)
        return learned + held

    def _settle(self) -> None:
        """Hold what follows from others, and what is learned, as it is now."""
        if self._related or self._learned is not None:
            with torch.no_grad():
                scale, zero = (part.detach().clone() for part in self._grid())
            self._buffers["scale"], self._buffers["zero_point"] = scale, zero.to(torch.int32)

    def _is_learned(self) -> bool:
        return any(q.log_scale is not None and q.log_scale.requires_grad for q in self._related[:1] or (self,))

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
                dtype = torch.int32 if name.endswith("zero_point") else torch.float32
                if value is not None and value.dtype != dtype:
                    value.data = value.data.to(dtype)
        self._numbers = self._cache = None
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Save the grid as it is now, and how it is learned."""
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
        """A state_dict of the float model says nothing of quantizers, and none of them is missing then.

        One of grids that are not learned is where learning starts; what one says of learning is left out where
        nothing is learned.
        """
        said = {key: value for key, value in state_dict.items() if key.startswith(prefix)}
        if not said:
            return
        if self.log_scale is None:
            said = {key: value for key, value in said.items() if key.removeprefix(prefix) in _HELD}
        elif prefix + "log_scale" not in said:
            for name in _HELD:
                said[f"{prefix}start_{name}"] = said.get(prefix + name, self._held(name))
            for name, parameter in self._parameters.items():
                if parameter is not None:
                    said[prefix + name] = torch.zeros_like(parameter)
            said.update({prefix + name: self._held(name) for name in ("factor", "unit")})
        super()._load_from_state_dict(said, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        self._held("scale").clamp_(min=SMALLEST_SCALE)
        self._numbers = self._cache = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Quantizer:
        copied = type(self)(self._template, self.layout)
        memo[id(self)] = copied
        copied.enabled, copied.in_place, copied.training = self.enabled, self.in_place, self.training
        copied._learned, copied.keeps_zeros = self._learned, self.keeps_zeros
        copied._buffers = {name: None if t is None else t.detach().clone() for name, t in self._buffers.items()}
        copied._parameters = copy.deepcopy(self._parameters, memo)
        copied._related = copy.deepcopy(self._related, memo)
        return copied

    def extra_repr(self) -> str:
        """The format, for printing."""
        state = "" if self.enabled else ", off"
        return f"{self._template.spec}{state}"


class WeightQuantizer(Quantizer):
    """The quantizer of a constant: its result is kept until the constant or the grid changes."""

    def forward(self, x: Tensor) -> Tensor:
        """`x` on the grid."""
        x = self._sparse(x)
        if not self.enabled:
            return x
        if is_recorded(x) or (torch.is_grad_enabled() and (x.requires_grad or self._is_learned())):
            return self._compute(x)
        key = (id(x), x.data_ptr(), x._version, x.dtype, x.device, _checksum(x), self._grid_version())
        if self._cache is None or self._cache[0] != key:
            self._cache = key, self._compute(x)
        return self._cache[1]


def _bits(x: Tensor) -> object:
    """A parameter's bits on the CPU; elsewhere, where reading them would make the host wait, never the same twice."""
    return x.detach().numpy().tobytes() if x.device.type == "cpu" else object()


def _checksum(x: Tensor) -> int:
    """The sum of a tensor's bits on the CPU: a write through ``x.data`` is not counted as a version. 0 elsewhere.

    On other devices it would make the host wait for every weight.
    """
    flat = dense(x) if x.device.type == "cpu" and x.dtype == torch.float32 else None
    if flat is None:
        return 0
    bits = flat.detach().numpy()
    pairs = bits.size - bits.size % 2  # two at a time is twice as fast
    return int(bits[:pairs].view(np.int64).sum()) + int(bits[pairs:].view(np.int32).sum())
