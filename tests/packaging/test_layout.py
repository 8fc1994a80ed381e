"""The installed distribution: what it holds, and what must not be in it or be imported by it."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import distribution, entry_points
from importlib.util import find_spec
from pathlib import Path

import isobit

ROOT = Path(__file__).parents[2]

FRAMEWORKS = ("torch", "tensorflow", "keras", "onnx", "onnxruntime", "onnx_ir", "onnxscript")


def folder_of(package):
    """Where a package is installed, without importing it."""
    return Path(find_spec(package).origin).parent


def test_import_loads_no_framework_and_no_numba():
    heavy = {*FRAMEWORKS, "numba", "plotly", "typer", "rich"}
    code = f"import isobit, sys; sys.exit(', '.join(sorted({heavy!r} & set(sys.modules))) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, f"import isobit loads {done.stderr}"


def test_every_core_module_imports_without_a_framework():
    package = folder_of("isobit")
    modules = sorted(
        ".".join(["isobit", *path.relative_to(package).with_suffix("").parts]).removesuffix(".__init__")
        for path in package.rglob("*.py")
        if path.name != "__main__.py"
    )
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        f"sys.exit(', '.join(set({FRAMEWORKS!r}) & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *modules], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_public_names_exist():
    for name in isobit.__all__:
        assert getattr(isobit, name) is not None


def test_errors_are_there_without_an_import_of_their_own():
    code = "import isobit; assert issubclass(isobit.errors.DataError, isobit.IsobitError)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_version_is_that_of_the_distribution():
    assert distribution("isobit").version == isobit.__version__


def test_entry_points_are_listed():
    names = {point.name: point.value for point in entry_points(group="isobit")}
    assert names["onnx"] == "isobit_onnx.plugin"


def test_data_files_are_installed():
    assert (folder_of("isobit") / "py.typed").is_file()
    assert (folder_of("isobit") / "targets" / "default.toml").is_file()
    assert (folder_of("isobit_onnx") / "py.typed").is_file()


def test_no_source_folder_shadows_a_framework():
    """A folder `torch/__init__.py` on the path would answer `import torch`."""
    shadows = [
        path
        for folder in ("core", "backends", "tests", "examples", "benchmarks")
        for path in (ROOT / folder).rglob("__init__.py")
        if path.parent.name in FRAMEWORKS
    ]
    assert shadows == []


def test_tests_are_no_packages():
    assert list((ROOT / "tests").rglob("__init__.py")) == []
