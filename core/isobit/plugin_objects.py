"""Whether an object is what its hook asks for: the members that it must have are read off the hook's Protocol."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import CodeType
from typing import Any

#: The Protocol of what each hook returns, where it does not return paths. It is loaded when the hook has been asked.
PROTOCOLS: Mapping[str, tuple[str, str]] = {
    "isobit_backends": ("isobit.backend.contract", "Backend"),
    "isobit_calibrators": ("isobit.calibration.scheme", "Calibrator"),
    "isobit_techniques": ("isobit.techniques.technique", "Technique"),
    "isobit_formats": ("isobit.formats.format", "EncodingsFormat"),
}

#: The statement of a member that is annotated and has no value.
ANNOTATED = object()

#: The hooks whose objects are classes.
_CLASSES = ("isobit_calibrators", "isobit_techniques")
_NAMED_BY: Mapping[str, str] = {"isobit_targets": "stem", "isobit_recipes": "stem", "isobit_techniques": "__name__"}


def name_of(item: Any, hook: str) -> Any:
    """The name under which an object of a hook is registered."""
    return getattr(item, _NAMED_BY.get(hook, "name"))


def problem_of(item: Any, hook: str) -> str | None:
    """Why an object is not what `hook` asks for, in words that name it and all that it lacks; None where it is."""
    if hook not in PROTOCOLS:
        return None if isinstance(item, Path) else f"{item!r} is no pathlib.Path"
    if hook in _CLASSES and not inspect.isclass(item):
        return f"{item!r} is no class"
    shown = item.__name__ if inspect.isclass(item) else type(item).__name__
    module, protocol = PROTOCOLS[hook]
    missing, optional = lacking(item, getattr(import_module(module), protocol))
    if missing or optional:
        derive = f"; derive from it, and {' and '.join(optional)} may be left out" if optional else ""
        return f"{shown} lacks {', '.join([*missing, *optional])}, see {module}.{protocol}{derive}"
    name = name_of(item, hook)
    return None if isinstance(name, str) else f"the name of {shown} is {name!r}, and no text"


def lacking(item: Any, protocol: type) -> tuple[list[str], list[str]]:
    """The members of a Protocol that an object does not have: those without a default, and those with one.

    An object whose class derives from the Protocol inherits its defaults. A member that the Protocol only states is
    inherited too, but is none.
    """
    missing: tuple[list[str], list[str]] = [], []
    for name, statement in members(protocol).items():
        optional = has_default(statement)
        own = inspect.getattr_static(item, name, None) is not statement
        if not hasattr(item, name) or not (own or optional):
            missing[optional].append(name)
    return missing


def members(protocol: type) -> dict[str, Any]:
    """The public members of a Protocol and how it states each: `ANNOTATED`, or what its class holds."""
    stated: dict[str, Any] = {}
    for base in reversed(protocol.__mro__):
        if getattr(base, "_is_protocol", False):
            stated.update(dict.fromkeys(inspect.get_annotations(base), ANNOTATED))
            stated.update(vars(base))
    return {name: statement for name, statement in stated.items() if not name.startswith("_")}


def has_default(statement: Any) -> bool:
    """Whether the statement of a member is also an implementation: a value, or a function that does something."""
    function = statement.fget if isinstance(statement, property) else getattr(statement, "__func__", statement)
    if statement is ANNOTATED or getattr(function, "__isabstractmethod__", False):
        return False
    return not inspect.isfunction(function) or not _does_nothing(function.__code__)


def _does_nothing(code: CodeType) -> bool:
    """Whether a function is no more than a text and dots: then it returns its last constant, which is None."""
    return code.co_code in _NOTHING and code.co_consts[-1:] == (None,)


def _documented() -> None:
    """A function with this text and nothing else."""


def _dots() -> None:
    """A function as a Protocol states it."""
    ...


def _bare() -> None: ...


#: What functions that do nothing are compiled to.
_NOTHING = frozenset(function.__code__.co_code for function in (_documented, _dots, _bare))
