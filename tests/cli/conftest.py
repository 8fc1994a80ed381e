from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from isobit.graph import Graph, TensorInfo

DIGITS = Path(__file__).parents[2] / "examples" / "digits"


@pytest.fixture
def digits() -> Path:
    return DIGITS


@pytest.fixture
def isobit(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The command in this process; arguments are turned into text."""
    from isobit.cli.application import app
    from isobit.cli.quantizing import latency

    monkeypatch.setattr(latency, "_SECONDS", 0.05)  # nobody reads the figures; tests/cli/test_latency.py is about them
    monkeypatch.setattr(latency, "_ROUNDS_WITHOUT_GAIN", 1)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERMINAL_WIDTH", "200")  # typer's own, for help and usage errors
    monkeypatch.setenv("NO_COLOR", "1")

    def run(*arguments: Any) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def images(digits: Path) -> np.ndarray:
    """Forty digits, float32 (40, 1, 32, 32)."""
    with np.load(digits / "calibration.npz") as archive:
        return archive["image"][:40]


def graph_of(**inputs: tuple[Any, ...] | TensorInfo) -> Graph:
    """A graph that is nothing but its inputs, which is all that loading data looks at."""
    tensors = {name: info if isinstance(info, TensorInfo) else TensorInfo(info) for name, info in inputs.items()}
    return Graph((), tuple(inputs), {}, tensors, {})


@pytest.fixture
def make_graph() -> Callable[..., Graph]:
    return graph_of
