"""Every isobit call in docs/migration.md exists, with the keywords that it names."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import isobit
from isobit.analysis import Analysis
from isobit.cli.application import app

PAGE = Path(__file__).parents[2] / "docs" / "migration.md"

#: What the page's names stand for.
NAMES = {"isobit": isobit, "sim": isobit.QuantSim, "found": Analysis, "techniques": isobit.techniques}

#: Where a keyword that stands alone may belong.
VERBS = (isobit.quantize, isobit.QuantSim, isobit.mixed_precision, isobit.compress)


def _ours() -> Iterator[str]:
    """The code on isobit's side of the tables."""
    for line in PAGE.read_text("utf-8").splitlines():
        cells = re.split(r"(?<!\\)\|", line)
        if len(cells) == 4 and "---" not in line:
            yield from re.findall(r"`([^`]+)`", cells[2])


def _parsed(code: str) -> ast.expr | None:
    filled = re.sub(r"(\w+)=(?=[,)]|$)", r"\1=None", code)
    for text in (filled, filled.partition(" = ")[2], f"_({filled})"):
        try:
            return ast.parse(text, mode="eval").body
        except SyntaxError:
            continue
    return None


def _resolved(node: ast.expr) -> Any:
    """The object that a name or an attribute stands for."""
    if isinstance(node, ast.Attribute):
        owner = _resolved(node.value)
        if isinstance(owner, property):
            return owner  # what it holds is known when it runs
        if owner is Analysis and node.attr in Analysis.__dataclass_fields__:
            return property()
        return getattr(owner, node.attr)
    if isinstance(node, ast.Call):
        called = _resolved(node.func)
        return called if inspect.isclass(called) else property()
    if isinstance(node, ast.Name):
        return NAMES[node.id] if node.id in NAMES else getattr(isobit.techniques, node.id)
    raise TypeError(ast.dump(node))


def check(code: str) -> None:
    """Raise where a piece of code names what is not there."""
    if code.startswith("isobit "):
        commands = {info.name or info.callback.__name__ for info in app.registered_commands}
        assert code.split()[1] in commands, code
        return
    body = _parsed(code)
    if body is None:
        return
    for call in (node for node in ast.walk(body) if isinstance(node, ast.Call)):
        keywords = {keyword.arg for keyword in call.keywords if keyword.arg}
        if isinstance(call.func, ast.Name) and call.func.id == "_":
            known = {name for verb in VERBS for name in inspect.signature(verb).parameters}
        elif isinstance(call.func, ast.Name) and not call.func.id[0].isupper():
            continue
        else:
            called = _resolved(call.func)
            if isinstance(called, property):
                continue
            parameters = inspect.signature(called).parameters
            known = set(parameters)
            if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
                known |= set(inspect.signature(isobit.QuantSim).parameters)
        assert keywords <= known, f"{code}: {keywords - known}"
    for node in ast.walk(body):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in NAMES:
            _resolved(node)


def test_every_call_of_isobit_exists() -> None:
    pieces = list(_ours())
    assert len(pieces) > 50
    for code in pieces:
        check(code)


@pytest.mark.parametrize(
    "code", ["isobit.quantise(model)", "sim.calibrat(data)", "isobit quantise", "sim.export(foldr=1)", "nothing=1"]
)
def test_what_does_not_exist_is_seen(code) -> None:
    with pytest.raises((AttributeError, AssertionError)):
        check(code)
