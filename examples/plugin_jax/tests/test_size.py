"""A backend that runs the neutral graph is small: what any such backend needs is in the core."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

import isobit_jax

MOST = 520

_NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(source: str) -> int:
    """Lines without blank ones, comments and docstrings."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {line for t in tokens if t.type not in _NO_CODE for line in range(t.start[0], t.end[0] + 1)}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            lines -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(lines)


def test_lines_of_code() -> None:
    files = sorted(Path(isobit_jax.__file__).parent.glob("*.py"))
    counted = {path.name: code_lines(path.read_text("utf-8")) for path in files}
    assert sum(counted.values()) <= MOST, counted


def test_what_counts() -> None:
    assert (
        code_lines('"""A text\nof two lines."""\n\nx = 1  # one\n# none\n\n\ndef f():\n    """Says."""\n    return x\n')
        == 3
    )
