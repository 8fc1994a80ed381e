"""Random modules, with random formats, recipes and targets: nothing raw, nothing lost, nothing refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")
sys.path.insert(0, str(Path(__file__).parents[1] / "random_models"))

from check_module import check_module
from draw_module import draw_module


@pytest.mark.parametrize("seed", range(100_000, 100_010))
def test_a_random_module(seed: int, tmp_path: Path) -> None:
    case = draw_module(seed)
    outcome = check_module(case, tmp_path / "out")
    assert not outcome.problems, f"{case.kinds}, {case.settings}"


def test_40_kinds_of_layers_are_drawn() -> None:
    assert len({kind for seed in range(200) for kind in draw_module(seed).kinds}) >= 40
