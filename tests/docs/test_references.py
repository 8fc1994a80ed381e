"""The documentation's build, as CI runs it, fails on references that lead nowhere, and names them."""

from __future__ import annotations

import configparser
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PAGE = """# Broken

A [link](nowhere.md), an [anchor](index.md#nowhere), and [a name][isobit.nowhere].
"""


def build_arguments(site: Path) -> list[str]:
    """The arguments of mkdocs in the tox env of the documentation."""
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", "utf-8")
    line = next(line for line in tox["testenv:docs"]["commands"].splitlines() if line.startswith("mkdocs build"))
    return [str(site) if "{env_tmp_dir}" in word else word for word in shlex.split(line)[1:]]


def test_a_broken_reference_fails_the_build_and_is_named(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    for folder in ("core", "backends"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "docs" / "broken.md").write_text(PAGE, "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", *build_arguments(tmp_path / "site")],
        cwd=tmp_path, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0
    for said in ("'nowhere.md'", "'#nowhere'", "'isobit.nowhere'"):
        assert said in done.stderr, done.stderr
