"""An `evaluate` that returns several figures by name, as one for each output or part of one."""

from __future__ import annotations

import json
import math
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from auto_killed import DATA, EXACT
from technique_networks import chain, simulator

import isobit
from isobit.errors import EvaluateError
from isobit.quantsim.judging.figures import mean_figures, score_of

FLOAT = {"first": 0.9, "others": 0.5}


def by_class(model) -> dict[str, float]:
    """How far the first class is off, and the others."""
    off = np.abs(model(DATA)["logits"] - EXACT).max(0)
    return {"first": -float(off[0]), "others": -float(off[1:].max())}


def _data(batches: int = 2) -> list:
    return [chain(0, spread=0.0).batch(8, seed) for seed in range(batches)]


def _coarse():
    return simulator(chain(0, spread=0.0), weights="int4", activations="uint4")


@pytest.fixture(scope="module")
def calibrated() -> isobit.QuantSim:
    return isobit.quantize(_coarse(), _data(), progress=False)


def test_the_figure_that_falls_most_decides() -> None:
    assert score_of(FLOAT, FLOAT) == pytest.approx(0.7)
    assert score_of({"first": 0.95, "others": 0.45}, FLOAT) == pytest.approx(0.7 - 0.05)  # a gain pays for no loss
    assert score_of({"first": 0.6, "others": 0.5}, FLOAT) == pytest.approx(0.7 - 0.3)
    assert math.isnan(score_of({"first": math.nan, "others": 0.5}, FLOAT))
    assert score_of(0.1 + 0.2, 1e9) == 0.1 + 0.2  # a number is its own score, to the bit
    assert mean_figures([{"a": 1.0}, {"a": 2.0}]) == {"a": 1.5}


def test_a_drop_must_hold_in_each(calibrated: isobit.QuantSim, tmp_path: Path) -> None:
    first = by_class(calibrated.run)
    drop = (min(first.values()) + max(first.values())) / -2  # between what the two figures fall at first
    assert -max(first.values()) < drop < -min(first.values())
    journal = tmp_path / "journal.jsonl"
    settings = {"max_drop": drop, "journal": journal, "evaluations": 4, "progress": False}
    found, again = (isobit.auto_quantize(_coarse(), _data(), by_class, **settings) for _ in range(2))
    assert found.attempts[0].outcome == "does not hold"
    assert found.holds
    assert found.chosen.figures == by_class(found.sim.run)
    assert found.chosen.drop == pytest.approx(-min(found.chosen.figures.values()))
    assert found.chosen.drop <= drop
    assert found.float_figures == {"first": 0.0, "others": 0.0}
    assert again.chosen.figures == found.chosen.figures
    assert "evaluate first -" in str(found)
    assert {section.title for section in found.sections()} >= {"Figures of evaluate"}
    assert json.loads(found.to_json())["chosen"]["figures"].keys() == FLOAT.keys()


def test_a_journal_from_before_goes_on_with_its_number(tmp_path: Path) -> None:
    """It has the value of the float model alone; agreement of outputs, near 1, would take the place of the figures."""
    journal = tmp_path / "journal.jsonl"
    settings = {"max_drop": 10.0, "journal": journal, "evaluations": 2, "progress": False}

    def worst(model) -> float:
        return 5.0 + min(by_class(model).values())

    found = isobit.auto_quantize(_coarse(), _data(), worst, **settings)
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    before = [{key: line[key] for key in line if key != "evaluate"} for line in lines if line.get("scored") == "float"]
    journal.write_text("\n".join(map(json.dumps, [lines[0], *before])) + "\n")
    again = isobit.auto_quantize(_coarse(), _data(), worst, **settings)
    assert again.chosen.score == found.chosen.score == worst(found.sim.run) < 5.0


def test_formats_and_analysis_and_compression_take_them(calibrated: isobit.QuantSim) -> None:
    sim = calibrated
    found = isobit.mixed_precision(sim, _data(), evaluate=by_class, max_drop=10.0, evaluations=2)
    measured = [point for point in found.curve if point.is_measured]
    assert all(point.drop == pytest.approx(-min(point.figures.values())) for point in measured)
    analysis = isobit.analyze(sim, _data(), by_class, checks=0)
    assert analysis.scores == {"float": {"first": 0.0, "others": 0.0}, "quantized": by_class(sim.run)}
    assert "quantized: first -" in str(analysis)
    assert "score, others, quantized" in str(analysis.sections()[0])
    small = isobit.compress(simulator(chain(0)), _data(), by_class, keep=0.5, method="weight-svd")
    assert small.report.judged_by == "evaluate"


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({}, "figures by name are a dict such as"),
        ({0: 0.5}, "figures by name are a dict such as"),
        ({"boxes": None}, "for 'boxes' None: it must return a number"),
        ({"boxes": math.nan, "classes": 1.0}, "returned nan for 'boxes' for the float model"),
    ],
)
def test_figures_that_are_none(calibrated: isobit.QuantSim, returned: dict, message: str) -> None:
    with pytest.raises(EvaluateError, match=message):
        isobit.mixed_precision(calibrated, _data(), evaluate=lambda model: returned)


def test_the_figure_that_is_no_number_is_named() -> None:
    def evaluate(model) -> dict[str, float]:
        figures = by_class(model)
        return {**figures, "others": figures["others"] if max(figures.values()) == 0 else math.nan}

    found = isobit.auto_quantize(_coarse(), _data(), evaluate, max_drop=0.1, evaluations=2, progress=False)
    assert not found.holds
    assert found.chosen.result == "it failed: evaluate returned nan for 'others'"


def test_figures_that_come_and_go(calibrated: isobit.QuantSim) -> None:
    """A figure that a model lacks is no figure of zero."""
    calls = []

    def evaluate(model) -> dict[str, float]:
        calls.append(model)
        return FLOAT if len(calls) < 3 else {"first": 0.9}

    with pytest.raises(EvaluateError, match="first, others for one model and first for another"):
        isobit.mixed_precision(calibrated, _data(), evaluate=evaluate)


def test_several_figures_that_scatter(calibrated: isobit.QuantSim) -> None:
    """The margin is that of the score, of which float runs and others are made alike."""
    rng = np.random.default_rng(0)

    def evaluate(model) -> dict[str, float]:
        model(DATA)
        return {name: figure + 0.01 * float(rng.standard_normal()) for name, figure in FLOAT.items()}

    found = isobit.mixed_precision(calibrated, _data(), evaluate=evaluate, max_drop=0.1, evaluations=2)
    assert found.runs == 3
    assert abs(found.chosen.drop) < 0.03
    assert 0.002 < found.chosen.margin < 0.06


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        (lambda model: math.nan, "evaluate returned nan for the float model"),
        (lambda model: {"boxes": 1.0, "classes": math.inf}, "evaluate returned inf for 'classes' for the float model"),
        (
            lambda model: model({"elsewhere": 1}),
            "evaluate calls the model with a batch that does not fit: it has no array",
        ),
        (
            lambda model: np.load("labels.gone"),
            "FileNotFoundError: .* paths in it start in the folder that this runs in",
        ),
    ],
)
def test_a_measure_that_says_nothing_is_refused_before_anything_is_measured(evaluate, message, monkeypatch) -> None:
    network = chain(1, spread=0)
    sim, data = simulator(network), [network.batch(4)]
    sim.calibrate(data)
    monkeypatch.setattr(import_module("isobit.analysis.analyze"), "measure_errors", None)
    with pytest.raises(EvaluateError, match=message):
        isobit.analyze(sim, data, evaluate)
