"""Random ONNX graphs, with random formats, recipes and targets: nothing raw, nothing lost, nothing refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "random_models"))

from check_case import check_graph
from draw_graph import OPSETS, draw_graph


@pytest.mark.parametrize("seed", range(100_000, 100_060))
def test_a_random_graph(seed: int, tmp_path: Path) -> None:
    case = draw_graph(seed)
    outcome = check_graph(case, tmp_path / "out")
    assert not outcome.problems, f"opset {case.opset}, {case.settings}"


def test_what_is_drawn_is_what_was_asked_for() -> None:
    """60 kinds of operations and every opset; the same seed draws the same."""
    cases = [draw_graph(seed) for seed in range(150)]
    assert {case.opset for case in cases} == set(OPSETS)
    assert len({op for case in cases for op in case.ops}) >= 60
    again = draw_graph(7)
    assert again.model == cases[7].model
    assert again.settings == cases[7].settings
