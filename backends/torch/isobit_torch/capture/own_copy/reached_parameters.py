"""Parameters that forward reaches past its module (a global name, an object around it): still those of the module."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram


def reached_parameters(program: ExportedProgram, *modules: nn.Module) -> dict[str, str]:
    """What torch.export took for constants and is a parameter or buffer of one of the `modules`: its path, by name.

    The `modules` are the one that was exported and those it is a copy of.
    """
    paths = {
        _place(value): path
        for module in reversed(modules)
        for path, value in (*module.named_parameters(), *module.named_buffers())
        if value.numel()
    }
    types = {path: value.dtype for path, value in (*modules[0].named_parameters(), *modules[0].named_buffers())}
    tensors = {name: value for name, value in program.constants.items() if isinstance(value, torch.Tensor)}
    found = {name: paths.get(_place(value)) for name, value in tensors.items() if name not in types}
    return {name: path for name, path in found.items() if path is not None and types[path] == tensors[name].dtype}


def _place(value: torch.Tensor) -> tuple[Any, ...]:
    return value.data_ptr(), value.device, value.dtype, tuple(value.shape), value.stride()
