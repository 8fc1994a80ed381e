"""Random ONNX graphs, with random formats, recipes and targets: nothing raw, nothing lost, nothing refused."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "random_models"))

from check_case import check_graph
from draw_graph import OPSETS, draw_graph
from draw_settings import draw_settings
from outcome import Journal, Outcome

from isobit.encodings.quant_spec import FLOAT_BITS
from isobit.plugins import registry


@pytest.mark.parametrize("seed", range(100_000, 100_040))
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


def test_settings_are_of_every_documented_kind() -> None:
    drawn = [draw_settings(np.random.default_rng(seed)) for seed in range(3000)]
    assert {settings.target for settings in drawn} == set(registry().targets())
    assert {settings.recipe for settings in drawn} == set(registry().recipes())
    assert {settings.method.partition("=")[0] for settings in drawn} == set(registry().calibrators())
    for what in ("activations", "weights"):
        words = [str(settings.options.get(what, "uint8")).split() for settings in drawn]
        types = {f"{sign}int{bits}" for bits in range(2, 17) for sign in ("", "u")} | set(FLOAT_BITS)
        assert {first for first, *_ in words} == types
        assert {"asymmetric", "strict"} <= {word for _, *others in words for word in others}


def test_a_long_run_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    """What had a problem is run again, and what came of it last counts."""
    path = tmp_path / "journal.jsonl"
    good, bad = Outcome(1, kinds=["Add"], bits="equal"), Outcome(2, problems=[("raw exception", "an error")])
    for outcome in (good, bad):
        Journal(path).add("graphs", outcome)
    journal = Journal(path)
    assert journal.known("graphs", 2) is journal.known("graphs", 3) is journal.known("modules", 1) is None
    known = journal.known("graphs", 1)
    assert known is not None
    assert (known.kinds, known.bits) == (["Add"], "equal")
    assert math.isnan(known.default_decibels)
    journal.add("graphs", Outcome(2, bits="ties"))
    assert Journal(path).known("graphs", 2) is not None
