"""`isobit.mixed_precision` on small networks: what it predicts, what it returns, and what it refuses."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from technique_networks import chain, simulator

import isobit
from isobit.analysis.measure_errors import copies, measure_errors
from isobit.deadline import TimeIsOver, until
from isobit.encodings.encoding import Encoding
from isobit.encodings.quant_spec import PerTensor, QuantSpec
from isobit.encodings.ranges import encode_range
from isobit.errors import DataError, EvaluateError, FormatError, ModelError
from isobit.graph.sites import Input, Tensor, Weight
from isobit.quantsim.judging.judge import Judge, mean
from isobit.quantsim.quantsim import QuantSim
from isobit.search.choose import Goal, Search, choose
from isobit.search.cost_tables import cost_table
from isobit.search.formats import parse_candidates
from isobit.search.groups import Groups
from isobit.search.integer_program import Program
from isobit.search.noise import sensitivity
from isobit.search.scoring import Scorer
from isobit.testing.networks import NETWORKS


def _simulator(**config) -> tuple[QuantSim, list]:
    network = chain(0, spread=0.0)
    sim = simulator(network, **config)
    data = [network.batch(8, seed) for seed in range(2)]
    sim.calibrate(data)
    return sim, data


@pytest.mark.parametrize("count", [2, 10])
def test_no_program_is_solved_after_the_deadline(monkeypatch, count: int) -> None:
    """Neither of the points at equal distances, the first eight behind the cheapest, nor of those in the gaps."""
    sim, data = _simulator(weights="int5", activations="uint5")
    formats = parse_candidates(sim.simulation, ["int5", "int8", "int16"])
    scorer = Scorer(sim.simulation.float_model(), Judge.of(sim.simulation.float_model(), data))
    search = Search(sim.simulation, data, scorer, formats, cost_table("bits", sim.target, formats), "test")
    solved, within = [], Program.within
    monkeypatch.setattr(Program, "within", lambda *args: solved.append(1) or within(*args))
    monkeypatch.setattr(time, "monotonic", lambda: 2.0 if len(solved) == count else 0.0)
    with pytest.raises(TimeIsOver), until(1.0):
        search.draw_curve()
    assert len(solved) == count


def test_every_assignment_of_a_small_network() -> None:
    """All 64 of them run: what is chosen for a budget is next to the best, and noise is predicted well."""
    sim, data = _simulator(weights="int5", activations="uint5")
    simulation = sim.simulation
    exact = simulation.float_model().copy()
    exact.enable(list(exact.encodings()), on=False)
    judge = Judge.of(exact, data)
    formats = parse_candidates(simulation, ["int5", "int16"])
    table = cost_table("bits", sim.target, formats)
    search = Search(simulation, data, Scorer(exact, judge), formats, table, "test")
    every = list(product(range(2), repeat=len(search.groups.all)))
    assert len(every) == 64
    measured = {choice: mean(judge.ratios(search.variant(choice).model)) for choice in every}
    predicted = {choice: search.point(choice).predicted for choice in every}
    errors = [measured[c] - predicted[c] for c in every if measured[c] < 60]
    assert np.abs(errors).mean() < 1.5
    for budget in np.quantile([search.program.costs.of(choice) for choice in every], (0.25, 0.5, 0.75)):
        found = search.program.quietest(float(budget))
        best = max(measured[choice] for choice in every if search.program.costs.of(choice) <= budget)
        assert measured[found] > best - 1
    # The curve has no gap: nothing is cheaper than it by what it predicts, but for fractions of a decibel.
    search.draw_curve()
    cost = search.program.costs.of
    for choice in every:
        best = max(predicted[point] for point in search.choices() if cost(point) <= cost(choice) * (1 + 1e-9))
        assert best > predicted[choice] - 0.5


def test_groups_to_which_no_noise_was_followed_back(monkeypatch) -> None:
    """What they make alone is measured; in eight bits more a 65,536th of it is left, by the steps of their grids."""
    sim, data = _simulator(weights="int8", activations="uint8")
    measure = sensitivity.measure_errors

    def without_shares(*args):
        found = measure(*args)
        return replace(found, errors=[replace(error, share=0.0) for error in found.errors])

    monkeypatch.setattr(sensitivity, "measure_errors", without_shares)
    monkeypatch.setattr(sensitivity, "left_with", lambda *args: None)
    simulation = sim.simulation
    formats = parse_candidates(simulation, ["int8", "int16"])
    groups = Groups(simulation)
    noise = sensitivity.noise_by_group(simulation, groups, formats, formats[0], 8, data).single
    assert noise.shape == (len(groups.all), 2)
    assert np.all(noise[:, 1] < 1e-3 * noise[:, 0])


def test_readers_that_share_a_grid_in_another_format() -> None:
    """A tensor's own grid may become one of each reader, and theirs one: what is left of the noise is that grid's."""
    sim, data = _simulator(weights="int8", activations="uint8")
    measured = measure_errors(sim.simulation, *copies(sim.simulation), data)
    graph, sites = sim.graph, {site: error for error in measured.errors for site in error.sites}
    site = next(site for site in sites if isinstance(site, Tensor) and graph.uses(str(site)))
    use = graph.uses(str(site))[0]
    wide = encode_range(*sites[site].seen, QuantSpec.parse("uint16").with_granularity(PerTensor()))
    alone = sensitivity._left(measured, sites[site], {site: wide}, {})
    assert 0 < alone < 1e-2
    assert sensitivity._left(measured, sites[site], {Input(use.node.name, use.index): wide}, {}) == alone
    assert sensitivity._left(measured, sites[site], {}, {}) == 1.0


def test_a_drop() -> None:
    """The cheapest measured point that holds; the curve has it; the simulator is of the same kind, and as measured."""
    sim, data = _simulator(weights="int5", activations="uint5")
    before = sim.run(data[0])
    found = isobit.mixed_precision(sim, data, max_drop=3e-4, candidates=["int5", "int16", "float"])
    assert found.holds
    assert found.chosen.holds(3e-4)
    assert found.chosen in found.curve
    assert [point.cost for point in found.curve] == sorted(point.cost for point in found.curve)
    cheaper = [point for point in found.curve if point.is_measured and point.cost < found.chosen.cost]
    assert cheaper
    assert not any(point.holds(3e-4) for point in cheaper)
    assert found.evaluations == sum(point.is_measured for point in found.curve) <= 12
    assert type(found.sim.model) is type(sim.model)
    errors = [found.sim.run(batch)["logits"] - sim.run_float(batch)["logits"] for batch in data]
    noise = [np.square(error, dtype=np.float64).sum(1) for error in errors]
    signal = [np.square(sim.run_float(batch)["logits"], dtype=np.float64).sum(1) for batch in data]
    assert found.chosen.sqnr == pytest.approx(
        float(np.mean(10 * np.log10(np.concatenate(signal) / np.concatenate(noise)))), abs=1e-6
    )
    np.testing.assert_array_equal(sim.run(data[0])["logits"], before["logits"])
    assert json.loads(found.to_json())["chosen"]["cost"] == found.chosen.cost
    assert "of the error" in str(found)
    drawn = next(section.content for section in found.sections() if section.kind == "curve")
    told, run = (series["points"] for series in drawn["series"])
    assert len(told) == sum(math.isfinite(point.predicted) for point in found.curve)
    assert [point["x"] for point in run if point["chosen"]] == [found.chosen.cost / found.curve[0].cost]
    # what it says can be typed
    typed = simulator(chain(0, spread=0.0), weights="int5", activations="uint5", overrides=dict(found.overrides))
    assert {s: p.spec for s, p in typed.plan.placements.items()} == {
        s: p.spec for s, p in found.sim.plan.placements.items()
    }


def test_the_samples_that_calibration_kept_serve_without_data() -> None:
    sim, _ = _simulator()
    found = isobit.mixed_precision(sim, max_drop=0.01)
    assert found.holds
    assert set(found.chosen.formats.values()) == {"int8"}
    assert found.evaluations == 1


def test_a_budget() -> None:
    sim, data = _simulator(weights="int4")
    sizes = isobit.mixed_precision(sim, data, max_drop=0.0, cost="bytes", candidates=["int4", "int8"])
    assert not sizes.holds
    assert "none of" in sizes.why
    least, most = sizes.curve[0].cost, sizes.curve[-1].cost
    assert most == pytest.approx(2 * least)
    budget = (least + most) / 2
    found = isobit.mixed_precision(sim, data, budget=budget, cost="bytes", candidates=["int4", "int8"])
    assert least < found.chosen.cost <= budget
    assert found.evaluations == 1
    assert (found.chosen.predicted or 0) > sizes.curve[0].predicted
    with pytest.raises(DataError, match="cannot be met"):
        isobit.mixed_precision(sim, data, budget=least / 2, cost="bytes", candidates=["int4", "int8"])


def test_what_is_kept() -> None:
    """A format that the user gave, an encoding that is frozen, weights that were rounded to a grid."""
    sim, data = _simulator(overrides={"conv1.weight": "int6"})
    encodings = sim.encodings
    sim.freeze({Weight("conv2.weight"): encodings[Weight("conv2.weight")]})
    found = isobit.mixed_precision(sim, data, budget=1e30, candidates=["int8", "int16", "float"])
    kept = {group.name: group for group in found.groups}
    assert kept["conv1"].why == "you gave conv1.weight its format"
    assert found.sim.encodings[Weight("conv1.weight")] == encodings[Weight("conv1.weight")]
    assert found.sim.encodings[Weight("conv2.weight")] == encodings[Weight("conv2.weight")]
    assert kept["conv2"].format == "int16"  # of its activation
    assert kept["fc"].format == "float"
    sim.freeze([Tensor("gap")])
    again = isobit.mixed_precision(sim, data, budget=1e30)
    assert next(group for group in again.groups if group.name == "fc").why == "the encoding of gap is frozen"


def test_biases_that_made_up_for_rounding() -> None:
    """Their corrections go where the weight has another format, and stay elsewhere."""
    network = chain(0, spread=0.0)
    data = [network.batch(8, seed) for seed in range(2)]
    sim = simulator(network, weights="int3")
    isobit.quantize(sim, data, techniques=[isobit.techniques.CorrectBias()], method="minmax", progress=False)
    corrected = set(sim.backend_model.compensations)
    assert {"conv0.bias", "fc.bias"} <= corrected
    found = isobit.mixed_precision(sim, data, budget=1e30, candidates=["uint8 x int3", "uint8 x int16"])
    with_weights = [group.format for group in found.groups if any(site.endswith(".weight") for site in group.sites)]
    assert with_weights == ["uint8 x int16"] * 4
    assert not found.sim.backend_model.compensations
    np.testing.assert_allclose(found.sim.backend_model.weight("fc.bias"), network.weights["fc.bias"])
    assert found.chosen.sqnr > 35


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"candidates": ["int8", "int17"]}, FormatError, "2 to 16 bits"),
        ({"candidates": ["int8", "inta16"]}, FormatError, "unknown number type"),
        ({"candidates": ["int8"]}, FormatError, "two formats at least"),
        ({"candidates": "int8"}, FormatError, "is a list of formats"),
        ({"candidates": ["int8", 16]}, FormatError, "is a text such as"),
        ({"candidates": ["uint8 per-channel x int8", "int8"]}, FormatError, "granularities are the plan's"),
        ({"budget": 1.0, "max_drop": 0.1}, FormatError, "either a budget or a max_drop"),
        ({"evaluations": 0}, FormatError, "at least 1 evaluation"),
        ({"cost": "seconds"}, FormatError, "unknown cost"),
        ({"evaluate": 3}, EvaluateError, "is a function of a model"),
        ({"evaluate": lambda: 1.0}, EvaluateError, "takes no model"),
        ({"evaluate": lambda model: float("nan")}, EvaluateError, "returned nan for the float model"),
        ({"evaluate": lambda model: None}, EvaluateError, "must return a number"),
        ({"evaluate": lambda model: model.nothing}, EvaluateError, "failed with AttributeError"),
    ],
)
def test_what_is_refused(settings, error, message) -> None:
    sim, data = _simulator()
    with pytest.raises(error, match=message):
        isobit.mixed_precision(sim, data, **settings)


def test_formats_that_the_target_lacks() -> None:
    network = chain(0, spread=0.0)
    sim = simulator(network, "onnxruntime-cpu")
    sim.calibrate([network.batch(8)])
    with pytest.raises(FormatError, match="cannot run activations of type float16"):
        isobit.mixed_precision(sim, candidates=["int8", "float16"])


def test_simulators_that_say_nothing() -> None:
    network = chain(0, spread=0.0)
    sim = simulator(network)
    with pytest.raises(ModelError, match="not calibrated"):
        isobit.mixed_precision(sim, [network.batch(8)])
    sim.calibrate([network.batch(8)])
    other = simulator(network)
    other.load_encodings(dict(sim.encodings))
    with pytest.raises(DataError, match="pass data"):
        isobit.mixed_precision(other)
    with pytest.raises(DataError, match="calibrate it first"):
        isobit.mixed_precision(other, [network.batch(8)])


def test_a_quantized_model_that_gives_nan_has_failed() -> None:
    """A figure that is none of one choice does not end the search."""
    sim, data = _simulator(weights="int4")
    exact = sim.run_float(data[0])["logits"]

    def evaluate(model) -> float:
        error = float(np.abs(model(data[0])["logits"] - exact).max())
        return -error if error < 0.05 * float(np.abs(exact).max()) else float("nan")

    found = isobit.mixed_precision(sim, data, evaluate=evaluate, max_drop=0.1 * float(np.abs(exact).max()))
    assert found.holds
    assert found.curve[0].score == -np.inf
    assert json.loads(found.to_json())["curve"][0]["score"] is None


def test_an_encoding_of_other_bits_is_left_alone_where_nothing_changes() -> None:
    """A range that was loaded stays through the search."""
    sim, data = _simulator()
    wide = Encoding(sim.encodings["gap"].spec, sim.encodings["gap"].scale * np.float32(2), 0)
    sim.load_encodings({Tensor("gap"): wide})
    found = isobit.mixed_precision(sim, data, max_drop=0.5)
    assert found.sim.encodings["gap"] == wide


def test_the_time_is_over() -> None:
    sim, data = _simulator(weights="int4")
    exact = sim.simulation.float_model().copy()
    exact.enable(list(exact.encodings()), on=False)
    scorer = Scorer(exact, Judge.of(exact, data))
    found = choose(sim.simulation, data, scorer, Goal(None, 0.0, 12, lambda: True))
    assert found.evaluations <= 4
    assert found.chosen.is_measured


def test_logits_are_predicted_where_logits_are_judged() -> None:
    """Behind a last Sigmoid errors look smaller: what is predicted is what is measured."""
    network = NETWORKS["upsampler"]()
    sim = simulator(network)
    sim.calibrate([network.batch(4)])
    found = isobit.mixed_precision(sim, evaluations=2, max_drop=1e-3)
    assert found.curve[0].sqnr == pytest.approx(found.curve[0].predicted, abs=1)


def test_what_is_in_float_for_its_time_stays_there() -> None:
    """A Softmax whose neighbours get a format: named by an override it would run on integers that nobody has seen."""
    network = NETWORKS["attention"]()
    sim = simulator(network, "onnxruntime-cpu")
    sim.calibrate([network.batch(4)])
    found = isobit.mixed_precision(sim, budget=1e30, candidates=["int8", "int16"])
    placed = {placement.tensor for placement in found.sim.plan.of_kind("activation")}
    assert placed == {placement.tensor for placement in sim.plan.of_kind("activation")}
    assert found.chosen.sqnr > 50
    typed = simulator(network, "onnxruntime-cpu", overrides=dict(found.overrides))
    assert typed.plan.placements == found.sim.plan.placements
