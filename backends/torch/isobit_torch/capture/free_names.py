"""Other names for parts of a module whose names the simulator's class has for itself: `graph`, `code`, `device`."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

#: The new names of parts, parameters and buffers of the outermost module, by their own.
NewNames = Mapping[str, str]


def new_names(module: nn.Module, taken: Collection[str]) -> NewNames:
    """For each part that would hide, or be hidden by, what the simulator has, as `taken`, under the same name."""
    names = (*module._modules, *module._parameters, *module._buffers)
    chosen: dict[str, str] = {}
    for name in names:
        number, free = 0, name
        while free in taken or (number and free in names):
            number += 1
            free = f"{name}_{number}"
        if number:
            chosen[name] = free
    return chosen


def moved(path: str, names: NewNames) -> str:
    """A dotted path in the simulator."""
    first, dot, rest = path.partition(".")
    return f"{names.get(first, first)}{dot}{rest}"


def notes(names: NewNames) -> list[str]:
    """One line for each part with another name."""
    return [
        f"the part {name!r} of the model is {new!r} in the simulator, whose class has a {name!r} of its own"
        for name, new in names.items()
    ]
