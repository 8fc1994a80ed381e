"""The page that says what is where: what it names exists, and every folder of the core and the backends is named."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
CORE = ROOT / "core" / "isobit"
PACKAGES = (CORE, *sorted(ROOT.glob("backends/*/isobit_*")))

_BLOCK = re.compile(r"```text\n(.*?)```", re.DOTALL)


def trees() -> dict[Path, dict[str, str]]:
    """What the drawn trees say of each folder and file, by package."""
    said: dict[Path, dict[str, str]] = {}
    for block in _BLOCK.findall(PAGE):
        package: Path | None = None
        for line in block.splitlines():
            if re.fullmatch(r"\w[\w/]*/", line):
                package = ROOT / line
                said[package] = {}
            elif package is not None:
                names, _, sentence = line.strip().partition("  ")
                said[package].update({name.rstrip("/"): sentence.strip() for name in names.split(", ")})
    return said


def folders(package: Path) -> set[str]:
    """Folders of a package that hold Python."""
    return {path.parent.relative_to(package).as_posix() for path in package.rglob("*.py")} - {"."}


def test_every_folder_is_named_and_no_other() -> None:
    said = trees()
    assert set(said) == set(PACKAGES)
    for package, names in said.items():
        named = {name for name in names if not name.endswith(".py")}
        assert named == folders(package), package.name
        assert all(names.values()), "each has its sentence"


def test_every_file_beside_the_folders_of_the_core_is_named() -> None:
    named = {name for name in trees()[CORE] if name.endswith(".py")}
    assert named == {path.name for path in CORE.glob("*.py")} - {"__init__.py"}


def test_every_file_that_is_named_exists() -> None:
    paths = [path for block in _BLOCK.findall(PAGE) if " -> " in block for path in re.findall(r"[\w/]+\.py", block)]
    cells = re.findall(r"\| `([\w/]+\.py)` \|", PAGE)
    assert len(paths) >= 15
    assert len(cells) >= 20
    assert [path for path in (*paths, *cells) if not (CORE / path).is_file()] == []


def test_the_page_is_short() -> None:
    assert 60 <= len(PAGE.splitlines()) <= 100
