"""The public names and their signatures are those of ``public_api.txt``: a change of them is made on purpose.

``python tests/packaging/test_public_api.py`` writes the file anew; say in CHANGELOG.md what users notice.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path

SNAPSHOT = Path(__file__).with_name("public_api.txt")

#: The library's own names, and what plug-ins are written against.
MODULES = {
    "isobit": None,
    "isobit.backend": None,
    "isobit.calibration": None,
    "isobit.canonical": None,
    "isobit.edits": None,
    "isobit.encodings": None,
    "isobit.formats": None,
    "isobit.graph": None,
    "isobit.graph_backend": None,
    "isobit.placement": None,
    "isobit.plugins": ("CONTRACT", "Hooks", "PluginRecord", "hookimpl", "names", "records", "registry"),
    "isobit.quantsim": None,
    "isobit.recipes": None,
    "isobit.statistics": None,
    "isobit.targets": None,
    "isobit.techniques": None,
}


def described(name, value):
    """Lines of text: the signature of a function, and of the public methods of a class."""
    if inspect.ismodule(value):
        return [f"{name}: module"]
    if not inspect.isclass(value):
        return [f"{name}{inspect.signature(value)}" if inspect.isfunction(value) else f"{name}: {type(value).__name__}"]
    protocol = getattr(value, "_is_protocol", False)
    lines = [f"class {name}" + ("" if protocol or issubclass(value, Exception) else str(inspect.signature(value)))]
    for key in sorted(vars(value)):
        member = inspect.getattr_static(value, key)
        if key.startswith("_"):
            continue
        if isinstance(member, property):
            lines.append(f"  {key}: {member.fget.__annotations__['return']}")
        elif inspect.isfunction(member) or isinstance(member, classmethod | staticmethod):
            lines.append(f"  {key}{inspect.signature(getattr(value, key))}")
    return lines


def snapshot():
    lines = []
    for module, chosen in MODULES.items():
        holder = import_module(module)
        lines.append(f"# {module}")
        for name in sorted(chosen if chosen is not None else holder.__all__):
            lines += described(name, getattr(holder, name))
    return "\n".join(lines) + "\n"


def test_the_public_names_and_signatures_are_as_written_down():
    assert snapshot() == SNAPSHOT.read_text("utf-8"), f"if the change is meant, run: python {__file__}"


if __name__ == "__main__":
    SNAPSHOT.write_text(snapshot(), "utf-8")
