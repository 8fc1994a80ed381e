"""What forward keeps in attributes of the module from one call to the next.

A cache (positions, anchors, features for a loss) is the same after another call on the same batch. A state (the hidden
state of a cell, the potential of a spiking neuron) is not, and a module that has been run is no longer the given one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from isobit_torch.capture.own_copy.held_tensors import held_tensors

_REGISTERED = ("_parameters", "_buffers", "_modules")

_Held = dict[str, list[torch.Tensor]]


def kept_states(given: nn.Module, module: nn.Module, run: Callable[[], object]) -> list[str]:
    """The attributes that hold states, by dotted path; `module` is a copy of `given` which `run` has run once."""
    before, first = _held(given), _held(module)
    changed = {path: tensors for path, tensors in first.items() if not _equal(tensors, before.get(path, []))}
    if not changed:
        return []
    changed = {path: [tensor.detach().clone() for tensor in tensors] for path, tensors in changed.items()}
    run()
    second = _held(module)
    return [path for path, tensors in changed.items() if not _equal(tensors, second.get(path, []))]


def _held(module: nn.Module) -> _Held:
    """The tensors in attributes of modules that are neither parameters nor buffers."""
    found: _Held = {}
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            if name not in _REGISTERED:
                tensors = list(held_tensors(value))
                if tensors:
                    found[f"{path}.{name}" if path else name] = tensors
    return found


def _equal(tensors: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return len(tensors) == len(others) and all(
        a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
        for a, b in zip(tensors, others, strict=True)
    )
