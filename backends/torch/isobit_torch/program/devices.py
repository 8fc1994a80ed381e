"""The device of a model; calls in its graph that name a device move with it."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate

from isobit.errors import ModelError


def device_of(module: nn.Module) -> torch.device:
    """Where the parameters are, or the buffers of a module without; the CPU where there is neither."""
    first = next(chain(module.parameters(), module.buffers()), None)  # no walk through all of them
    return torch.device("cpu") if first is None else first.device


def require_one_device(module: nn.Module) -> torch.device:
    """The one device of a module; numbers (buffers without axes) may be elsewhere. Raises ModelError."""
    held: dict[torch.device, str] = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.ndim:
            held.setdefault(tensor.device, name)
    if torch.device("meta") in held:
        name = held[torch.device("meta")]
        raise ModelError(f"{name!r} is on the meta device, without values: load the weights first")
    if len(held) > 1:
        places = ", ".join(f"{name!r} on {device}" for device, name in held.items())
        raise ModelError(f"the model is spread over several devices ({places}): move it to one first")
    return next(iter(held), device_of(module))


def follow(graph: fx.Graph, old: torch.device, new: torch.device) -> bool:
    """Let calls that make tensors on `old` make them on `new`, in place; whether there were any."""
    changed = False

    def moved(value: Any) -> Any:
        nonlocal changed
        if not isinstance(value, torch.device) or value.type != old.type or value.index not in (None, old.index):
            return value
        changed = True
        return new

    for node in graph.nodes:
        node.args, node.kwargs = map_aggregate(node.args, moved), map_aggregate(node.kwargs, moved)
    return changed
