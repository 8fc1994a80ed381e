"""The core stays light: it imports no framework, and importing it imports nearly nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import isobit

HEAVY = {"torch", "tensorflow", "keras", "onnx", "onnxruntime", "numba", "plotly"}
FRAMEWORKS = {"torch", "tensorflow", "keras", "jax", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "tf2onnx"}
CORE = Path(isobit.__file__).parent


def test_importing_isobit_imports_nothing_heavy() -> None:
    code = f"import isobit, sys; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def imports(tree: ast.Module) -> Iterator[str]:
    """Top-level packages that a module imports when it is imported: not in functions, nor under TYPE_CHECKING."""
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]
        pending += ast.iter_child_nodes(node)


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda path: str(path.relative_to(CORE)))
def test_no_module_of_the_core_imports_a_framework(path: Path) -> None:
    found = set(imports(ast.parse(path.read_text("utf-8"))))
    assert not found & FRAMEWORKS
    assert not {name for name in found if name.startswith("isobit_")}, "the core knows no backend"


def test_the_scan_would_see_one() -> None:
    code = "import os\nif x:\n    import onnx.helper\nclass A:\n    from torch import nn\ndef f():\n    import keras\n"
    assert set(imports(ast.parse(code))) == {"os", "onnx", "torch"}


def test_public_names_are_there_and_others_are_not() -> None:
    for name in isobit.__all__:
        assert getattr(isobit, name) is not None
    assert set(isobit.__all__) <= set(dir(isobit))
    with pytest.raises(AttributeError, match="module 'isobit' has no attribute 'quantise'"):
        isobit.quantise  # noqa: B018
