"""Runs the documentation: every python and sh block of the README and of docs/, in order, page by page.

A block with a title is written to the file of that name before the next one runs. A block that cannot run here stands
behind a comment ``<!-- not run here: why -->``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])

_SKIPPED = re.compile(r"<!-- not run here: .+ -->")
_FENCE = re.compile(r'```(?P<language>\w+)?(?: title="(?P<title>[^"]+)")?')


@dataclass(frozen=True)
class Block:
    line: int  # of the first line inside the fence, from 1
    language: str
    title: str | None
    text: str


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page that are run."""
    found = []
    lines = page.read_text("utf-8").splitlines()
    skip = False
    index = 0
    while index < len(lines):
        line = lines[index]
        index += 1
        if not line.startswith("```"):
            skip = bool(_SKIPPED.fullmatch(line)) or (skip and not line.strip())
            continue
        fence = _FENCE.fullmatch(line)
        if fence is None or fence["language"] is None:
            raise AssertionError(f"{page}:{index}: a fence says its language: {line}")
        end = lines.index("```", index)
        if not skip:
            text = "\n".join(lines[index:end]) + "\n"
            found.append(Block(index + 1, fence["language"], fence["title"], text))
        skip = False
        index = end + 1
    return found


def run_python(block: Block, page: Path, names: dict[str, object]) -> None:
    padded = "\n" * (block.line - 1) + block.text  # a traceback points into the page
    exec(compile(padded, str(page), "exec"), names)


def run_shell(block: Block, page: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text], env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{page}:{block.line}: exit code {done.returncode}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_run(page, tmp_path, monkeypatch):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks_of(page):
        if block.title:
            file = tmp_path / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, "utf-8")
        elif block.language == "python":
            run_python(block, page, names)
        elif block.language == "sh":
            run_shell(block, page)
        elif block.language != "text":  # a drawing, or what a command prints
            pytest.fail(f"{page}:{block.line}: a block in {block.language} needs a title")


def test_the_guides_hold_blocks():
    """Against a parser that finds none."""
    assert sum(len(blocks_of(page)) for page in PAGES) > 20
