"""Other names for parts of a module that a simulator cannot have under their own.

These are `graph` and `code`, which its class has for itself, `class` and `lambda`, which are words of Python, and
parameters that are called as an input is.
"""

from __future__ import annotations

import keyword
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping

from torch import nn

#: The new last names of parts, parameters and buffers, by their own dotted paths.
NewNames = Mapping[str, str]

_BREAKS_TEXT = re.compile(r'["\\\r\n]')


def new_names(module: nn.Module, taken: Collection[str], inputs: Collection[str]) -> NewNames:
    """For each part that cannot be written in code another name.

    The outermost module also gives up names in `taken`, and its parameters and buffers those of `inputs`.
    """
    outermost = {*module._parameters, *module._buffers}
    chosen: dict[str, str] = {}
    for path, names in _parts(module):
        used = set(names)
        for name in names:
            reserved = () if path else (*taken, *(inputs if name in outermost else ()))
            others = {*reserved, *(used - {name})}
            free = name_in_code(name, others.__contains__)
            if free != name:
                used.add(free)
                chosen[f"{path}.{name}" if path else name] = free
    return chosen


def _parts(module: nn.Module) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The path of each module, and the names that it holds."""
    for path, holder in module.named_modules(remove_duplicate=False):
        yield path, (*holder._modules, *holder._parameters, *holder._buffers)


def name_in_code(name: str, is_taken: Callable[[str], bool]) -> str:
    """The name by which a generated program can call a part: `name` where code can say it and nothing else has it."""
    free = stem = _written(name)
    number = 0
    while keyword.iskeyword(free) or is_taken(free):
        number += 1
        free = f"{stem}_{number}"
    return free


def _written(name: str) -> str:
    """The name as Python code has it: text without quotes, identifiers in the form in which Python compares them."""
    plain = _BREAKS_TEXT.sub("_", name)
    return unicodedata.normalize("NFKC", plain) if plain.isidentifier() else plain


def moved(path: str, names: NewNames) -> str:
    """A dotted path in the simulator."""
    parts = path.split(".")
    walked = (".".join(parts[: count + 1]) for count in range(len(parts)))
    return ".".join(names.get(prefix, part) for prefix, part in zip(walked, parts, strict=True))


def notes(names: NewNames, inputs: Collection[str]) -> list[str]:
    """One line for each part with another name."""
    return [
        f"the part {path!r} of the model is {new!r} in the simulator, {_why(path.rpartition('.')[2], inputs)}"
        for path, new in names.items()
    ]


def _why(name: str, inputs: Collection[str]) -> str:
    if keyword.iskeyword(name) or _written(name) != name:
        return "since code cannot call it by its own name"
    if name in inputs:
        return "which has an input of that name"
    return f"whose class has a {name!r} of its own"
