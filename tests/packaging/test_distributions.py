"""The sdist and the wheel: built once from this tree, equal, and with extras that the tested versions satisfy."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

pytest.importorskip("hatchling", reason="builds with hatchling, which the tox env `core` has")

ROOT = Path(__file__).parents[2]
VARIANTS = ("onnx-cpu", "onnx-cuda", "torch-cpu", "torch-cuda", "tensorflow-cpu", "tensorflow-cuda")


def build(source, folder, *targets):
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder), *(f"-t{target}" for target in targets)]
    subprocess.run(command, cwd=source, check=True, env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"})


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the sdist and the wheel."""
    folder = tmp_path_factory.mktemp("dist")
    build(ROOT, folder, "sdist", "wheel")
    return folder


@pytest.fixture(scope="module")
def requirements(built):
    """Requirements by extra, from the wheel's metadata."""
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith("dist-info/METADATA"))
        metadata = Parser().parsestr(wheel.read(name).decode())
    runtime = [Requirement(text) for text in metadata.get_all("Requires-Dist")]
    extras = metadata.get_all("Provides-Extra")
    plain = [r for r in runtime if r.marker is None]
    return {
        extra: [*plain, *(r for r in runtime if r.marker and r.marker.evaluate({"extra": extra}))] for extra in extras
    }


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_sdist_builds_the_same_wheel(built, tmp_path):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = (path for path in tmp_path.iterdir())
    build(source, tmp_path / "again", "wheel")
    first, second = contents(next(built.glob("*.whl"))), contents(next((tmp_path / "again").glob("*.whl")))
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_the_wheel_holds_what_is_public_and_typed(built):
    names = contents(next(built.glob("*.whl"))).keys()
    for package in ("isobit", "isobit_onnx", "isobit_torch", "isobit_tensorflow"):
        assert f"{package}/py.typed" in names
    assert "isobit/targets/default.toml" in names
    assert "isobit/cli/templates/plugin/plugin.py.template" in names
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"isobit", "isobit_onnx", "isobit_torch", "isobit_tensorflow"}


def names_of(requirements, extra):
    return {re.sub(r"[-_.]+", "-", requirement.name.lower()) for requirement in requirements[extra]}


@pytest.mark.parametrize("extra", VARIANTS)
def test_a_variant_brings_its_framework_on_its_device_alone(requirements, extra):
    frameworks = {"onnxruntime", "onnxruntime-gpu", "torch", "tensorflow", "tensorflow-cpu"}
    expected = {
        "onnx-cpu": "onnxruntime", "onnx-cuda": "onnxruntime-gpu", "torch-cpu": "torch", "torch-cuda": "torch",
        "tensorflow-cpu": "tensorflow-cpu", "tensorflow-cuda": "tensorflow",
    }[extra]  # fmt: skip
    assert names_of(requirements, extra) & frameworks == {expected}
    assert {"onnx", "onnx-ir", "onnxscript"} <= names_of(requirements, extra)  # what export needs
    if extra == "tensorflow-cuda":
        assert any(r.name == "tensorflow" and "and-cuda" in r.extras for r in requirements[extra])


def pins(name):
    """Versions by package in a file of constraints and in those that it includes."""
    versions = {}
    for line in (ROOT / name).read_text("utf-8").splitlines():
        if line.startswith("-r "):
            versions |= pins(line.removeprefix("-r "))
        elif line and not line.startswith("#"):
            package, number = line.split("==")
            versions[package.replace("_", "-")] = Version(number)
    return versions


@pytest.mark.parametrize(("extra", "file"), [
    ("onnx-cpu", "constraints-lowest.txt"),
    ("torch-cpu", "constraints-lowest-torch.txt"),
    ("tensorflow-cpu", "constraints-lowest-tensorflow.txt"),
])  # fmt: skip
def test_the_lowest_versions_are_the_bounds(requirements, extra, file):
    """What `tox -e lowest` and its like install is what the metadata of the core and of the extras says."""
    bounds = {}
    for requirement in [*requirements["onnx-cpu"], *requirements[extra]]:
        (bound,) = (spec.version for spec in requirement.specifier if spec.operator == ">=")
        bounds[requirement.name.lower().replace("_", "-")] = Version(bound)
    pinned = pins(file)
    if extra == "tensorflow-cpu":  # TensorFlow itself asks for more
        assert pinned.pop("ml-dtypes") >= bounds.pop("ml-dtypes")
    assert pinned == bounds


def test_any_variants_go_together(requirements):
    """The versions that CI installs satisfy every requirement of every extra, so that no two exclude each other."""
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text("utf-8").split() if "==" in line)
    pinned = {name.lower().replace("_", "-"): number for name, number in pinned.items()}
    for extra, needed in requirements.items():
        for requirement in needed:
            name = requirement.name.lower().replace("_", "-")
            assert name in pinned, f"{extra} brings {name}, which constraints.txt does not hold"
            assert requirement.specifier.contains(pinned[name]), f"{extra}: {requirement} and {pinned[name]}"
