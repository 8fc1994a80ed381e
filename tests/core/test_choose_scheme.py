"""Of several schemes the one that the outputs are best with is taken; what cannot be compared is said."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from technique_networks import chain, simulator

from isobit.backend import CheckedModel
from isobit.calibration import Auto, MinMaxRange, Percentile, resolve
from isobit.calibration.resolve import Resolved
from isobit.edits import SetWeights
from isobit.encodings import Encodings
from isobit.errors import FormatError
from isobit.quantsim.checks.quality import sample_decibels
from isobit.quantsim.judging.choose_scheme import Candidate, best_of
from isobit.quantsim.judging.judge import Judge
from isobit.techniques import TechniqueReport
from isobit.techniques.context import TechniqueContext


def _data(network, outlier: float):
    batches = [network.batch(8, seed) for seed in range(3)]
    batches[-1]["x"][0, 0, 0, 0] = outlier
    return batches


@pytest.mark.parametrize("outlier", [1.0, 1e3, 1e6])
def test_no_candidate_is_better_on_the_samples(outlier: float) -> None:
    network = chain(1, spread=0)
    data = _data(network, outlier)
    sim = simulator(network)
    sim.calibrate(data, "auto")
    exact = [sim.run_float(batch) for batch in data[:2]]  # 16 samples

    def quality() -> float:
        pairs = zip(exact, data[:2], strict=True)
        return float(np.mean([ratio for e, batch in pairs for ratio in sample_decibels(e, sim.run(batch))]))

    chosen, text = quality(), sim.simulation.calibration
    others, told = {}, []
    for candidate in Auto().candidates:
        sim.recalibrate(candidate)
        others[repr(candidate)] = quality()
        sim.backend_model.enable([placement.site for placement in sim.plan.of_kind("bias")], on=False)
        if quality() > chosen - 1:
            told.append(quality())
    assert chosen >= max(others.values()) - 0.1
    assert next(name for name in others if text.startswith(name)) in others
    assert told
    assert all(f"{value:.1f}" in text for value in told)  # biases as they are
    sim.recalibrate("auto")
    assert quality() == chosen


@pytest.mark.parametrize("first", ["", "minmax"])
def test_an_interrupted_comparison_changes_nothing(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheme that was tried last is nobody's choice, and what comes next sees the float model as float."""
    network = chain(1, spread=0)
    data, sim, undisturbed = _data(network, 1.0), simulator(network), simulator(network)
    if first:
        sim.calibrate(data, first)
    before, ratios, runs = dict(sim.encodings), Judge.ratios, []

    def interrupted(judge, model, rival=None):
        runs.append(1)
        if len(runs) == 3:
            raise KeyboardInterrupt
        return ratios(judge, model, rival)

    with monkeypatch.context() as patched:
        patched.setattr(Judge, "ratios", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sim.calibrate(data, "auto")
    assert dict(sim.encodings) in (before, {})
    assert dict(sim.encodings) or sim.simulation.calibration is None
    sim.calibrate(data, "auto")
    undisturbed.calibrate(data, "auto")
    assert sim.encodings == undisturbed.encodings
    for name, values in undisturbed.run(data[0]).items():
        np.testing.assert_array_equal(sim.run(data[0])[name], values)


def test_without_samples_the_first_is_taken_and_said(tmp_path) -> None:
    network = chain(1, spread=0)
    measured, fresh = simulator(network), simulator(network)
    measured.calibrate(_data(network, 1.0), "reader-error")
    measured.save_statistics(tmp_path / "s.npz")
    fresh.load_statistics(tmp_path / "s.npz")
    fresh.recalibrate("auto")
    assert fresh.encodings == measured.encodings
    assert any("no samples to compare schemes with" in note for note in fresh.report.notes)
    with pytest.raises(FormatError, match="auto takes no setting"):
        fresh.recalibrate("auto=3")


class Fussy(MinMaxRange):
    """Has no ranges for anything."""

    name = "fussy"

    def range(self, histogram, spec):
        raise FormatError("none")


class FussyFirst(Auto):
    candidates = (Fussy(), MinMaxRange())


def test_a_candidate_without_ranges_for_a_format_is_left_out() -> None:
    network = chain(1, spread=0)
    chosen, plain = simulator(network), simulator(network)
    chosen.calibrate(_data(network, 1.0), FussyFirst())
    plain.calibrate(_data(network, 1.0), "minmax")
    assert chosen.encodings == plain.encodings
    assert "fussy" not in chosen.simulation.calibration


def test_decibels_are_of_samples() -> None:
    exact = {"y": np.array([[3.0, 4.0], [30.0, 40.0]], np.float32), "class": np.array([1, 2])}
    other = {"y": exact["y"] + np.array([[0.5, 0.0], [0.0, 5.0]], np.float32), "class": np.array([2, 2])}
    assert sample_decibels(exact, other) == pytest.approx([20.0, 20.0])
    assert sample_decibels(exact, exact) == [200.0, 200.0]
    shorter = {"y": exact["y"][:, :1]}  # a length that follows from values
    assert sample_decibels(exact, shorter) == [0.0]


def test_easy_samples_do_not_make_a_scheme_the_best() -> None:
    """One that was given up after an easy first batch is not compared with the mean of hard ones."""
    resolved = Resolved(Encodings())
    whole = Candidate(MinMaxRange(), resolved, [[60.0, 58.0], [5.0, 7.0]])
    given_up = Candidate(Percentile(), resolved, [[50.0, 48.0]])
    better = Candidate(Auto(), resolved, [[60.0, 58.0], [6.0, 8.0]])
    failed = Candidate(Auto(), resolved, [[float("-inf")]])
    assert best_of([whole, given_up]) is whole
    assert best_of([whole, given_up, better]) is better
    assert best_of([failed, whole, given_up]) is whole


class Twice(Auto):
    candidates = (MinMaxRange(), MinMaxRange())


@dataclass(frozen=True)
class ShiftBiases:
    """Says that it makes up for quantization, and does not."""

    by: float

    def apply(self, context: TechniqueContext) -> TechniqueReport:
        model = context.model
        names = [n.inputs[2] for n in context.graph.nodes if n.op in ("Conv", "Linear")]
        model.edit([SetWeights({name: model.weight(name) + self.by for name in names}, compensates=True)])
        return TechniqueReport("ShiftBiases", tuple(names))


@pytest.mark.parametrize("by", [0.0, 1.0])
def test_corrections_that_make_it_worse_are_taken_back_and_said(by: float) -> None:
    network = chain(1, spread=0)
    data = _data(network, 1.0)
    plain, shifted = simulator(network), simulator(network)
    plain.calibrate(data, Twice())
    shifted.apply(ShiftBiases(by))
    shifted.calibrate(data, Twice())
    for name, values in plain.run(data[0]).items():
        np.testing.assert_array_equal(shifted.run(data[0])[name], values)
    assert any("taken back" in note for note in shifted.report.notes) == bool(by)


def test_corrections_are_judged_with_biases_as_the_schemes_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model without them is compared with a figure that was measured with biases in float."""
    network = chain(1, spread=0)
    sim = simulator(network)
    sim.apply(ShiftBiases(0.0))
    judged: list[bool] = []
    ratios = Judge.ratios

    def seen(judge, model, rival=None):
        judged.append(any(p.site in model.encodings() for p in sim.plan.of_kind("bias")))
        return ratios(judge, model, rival)

    monkeypatch.setattr(Judge, "ratios", seen)
    sim.calibrate(_data(network, 1.0), Twice())
    assert judged == [False, False]
    assert any(placement.site in sim.encodings for placement in sim.plan.of_kind("bias"))


def test_equal_encodings_are_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network = chain(1, spread=0)
    data, runs = _data(network, 1.0), []
    sim = simulator(network)
    run = CheckedModel.run
    monkeypatch.setattr(
        CheckedModel, "run", lambda model, batch: runs.append(len(model.encodings())) or run(model, batch)
    )
    sim.calibrate(data, Twice())
    assert len([count for count in runs if count]) == len(sim.simulation.judge.samples)


def test_weights_are_encoded_once_for_all_schemes(monkeypatch: pytest.MonkeyPatch) -> None:
    network = chain(1, spread=0)
    sim = simulator(network)
    sim.calibrate(_data(network, 1.0), "minmax")
    encoded: list[object] = []
    encode = resolve.encode_weight
    monkeypatch.setattr(
        resolve, "encode_weight", lambda *args, **kwargs: encoded.append(args[0]) or encode(*args, **kwargs)
    )
    sim.recalibrate("auto")
    assert len(encoded) == len([*sim.plan.of_kind("weight"), *sim.plan.of_kind("constant")])


def test_decibels_of_rows_without_noise_or_signal() -> None:
    exact = {"y": np.array([[3.0, 4.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]], np.float32)}
    other = {"y": np.array([[3.0, 4.5], [1.0, 1.0], [0.0, 1.0], [0.0, 0.0]], np.float32)}
    assert sample_decibels(exact, other) == pytest.approx([20.0, 200.0, -200.0, 200.0])
    other["y"][1, 0] = np.nan  # a row that is lost leaves the others as they are
    assert sample_decibels(exact, other) == pytest.approx([20.0, -200.0, -200.0, 200.0])
