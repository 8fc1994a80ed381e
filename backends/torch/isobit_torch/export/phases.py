"""Phases as ONNX has them: its exporter takes the phase of a negative number for -pi, where torch has +pi.

A spectrum of real signals has such numbers at both of its ends, where the imaginary part is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from isobit_torch.program.fx_nodes import op_name


def as_quadrants(graph: fx.Graph) -> None:
    """Let calls of `angle` and `atan2` say which quadrant they mean, by comparisons; in place."""
    calls = [node for node in graph.nodes if op_name(node) in _WRITTEN]
    for node in calls:
        node.target = _WRITTEN[op_name(node)]
    for node in [node for node in graph.nodes if op_name(node) == "stft"] if calls else ():
        node.target = _with_real_ends(node.target)


def _angle(value: torch.Tensor) -> torch.Tensor:
    return _atan2(value.imag, value.real) if value.is_complex() else torch.angle(value)


def _with_real_ends(stft: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A transform whose frequency 0 and highest frequency are real: in ONNX they are so up to rounding, of any sign."""

    def transform(x: torch.Tensor, size: int, *settings: Any, **named: Any) -> torch.Tensor:
        spectrum = stft(x, size, *settings, **named)
        if not spectrum.is_complex() or x.is_complex() or spectrum.shape[-2] != size // 2 + 1:
            return spectrum
        kept = torch.ones(size // 2 + 1, 1, 2)
        kept[0, :, 1] = 0
        if size % 2 == 0:
            kept[-1, :, 1] = 0
        return torch.view_as_complex(torch.view_as_real(spectrum) * kept)

    return transform


def _atan2(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    slope = torch.atan(y / x)
    behind = torch.where(y < 0, slope - math.pi, slope + math.pi)
    upright = torch.sign(y) * (math.pi / 2)
    return torch.where(x == 0, upright, torch.where(x < 0, behind, slope))


_WRITTEN: Mapping[str, Callable[..., Any]] = {"angle": _angle, "atan2": _atan2}
