"""`isobit new-plugin NAME`: a new package to begin from, with tests that pass."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from isobit.cli.guard import Debug
from isobit.cli.terminal import line, print_json
from isobit.errors import OutputError, PluginError

#: Where each template goes; ``@PACKAGE@`` and ``@NAME@`` are replaced in paths and texts.
_FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "__init__.py": "@PACKAGE@/__init__.py",
    "plugin.py": "@PACKAGE@/plugin.py",
    "target.toml": "@PACKAGE@/@NAME@.toml",
    "scheme.py": "@PACKAGE@/scheme.py",
    "technique.py": "@PACKAGE@/technique.py",
    "backend.py": "@PACKAGE@/backend.py",
    "test_plugin.py": "tests/test_plugin.py",
    "test_conformance.py": "tests/test_conformance.py",
}


def new_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name: lower case letters, digits and hyphens.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where to put the folder isobit-NAME.")
    ] = Path(),
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="Print JSON.")] = False,
    _debug: Debug = False,
) -> None:
    """Write a plug-in package: target, scheme, technique, a backend to fill in, tests and the conformance suite."""
    folder = write_plugin(name, out)
    if as_json:
        print_json({"folder": str(folder)})
        return
    line(f"{folder} is written; next:")
    line(f"pip install -e '{folder}[test]' && pytest {folder}", is_command=True)


def write_plugin(name: str, out: Path) -> Path:
    """The new package's folder. Raises PluginError for an invalid name, OutputError where the folder exists."""
    from isobit.files import is_there, write_folder
    from isobit.plugins import CONTRACT, names
    from isobit.version import __version__

    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise PluginError(
            f"a plug-in is named with lower case letters, digits and hyphens, for example acme-npu, not {name!r}"
        )
    if name in (*names(), "isobit"):
        raise PluginError(f"a plug-in named {name!r} is installed already: choose another name")
    words = {
        "@NAME@": name, "@PACKAGE@": "isobit_" + name.replace("-", "_"), "@CONTRACT@": str(CONTRACT),
        "@CLASS@": "".join(part.capitalize() for part in name.split("-")), "@VERSION@": __version__,
    }  # fmt: skip

    def filled(text: str) -> str:
        return re.sub("@[A-Z]+@", lambda word: words[word.group()], text)

    folder = out / f"isobit-{name}"
    if is_there(folder):
        raise OutputError(f"{folder} exists already: remove it, or choose another place with --out")
    source = files("isobit.cli") / "templates" / "plugin"
    with write_folder(folder) as staging:
        for template, place in _FILES.items():
            path = staging / filled(place)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(filled((source / f"{template}.template").read_text("utf-8")), "utf-8")
    return folder
