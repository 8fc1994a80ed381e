"""What steps and schemes are judged by: logits in front of a last Softmax, samples that are held back, and no more."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from technique_networks import chain, simulator

from isobit.backend import CheckedModel
from isobit.calibration import Auto, MinMaxRange
from isobit.data import Batch, Dataset
from isobit.graph import Tensor, TensorInfo
from isobit.quantsim.apply import calibrate
from isobit.quantsim.checks.quality import Outputs, sample_decibels
from isobit.quantsim.judging.judge import (
    Judge,
    Ratios,
    _flattened,
    decibels_of_samples,
    is_ahead,
    is_behind,
    is_better,
    mean,
)
from isobit.quantsim.judging.judge_steps import _judged
from isobit.quantsim.run_recipe import run_recipe
from isobit.recipes import Recipe, Step
from isobit.statistics import ChannelMoments, Request
from isobit.techniques import BalanceChannels, CorrectBias, TechniqueReport
from isobit.techniques.context import Requests, TechniqueContext
from isobit.testing.networks import Network, NetworkBuilder


def classifier(last: str | None, *, both: bool = False) -> Network:
    """A network that may end in Softmax or Sigmoid; `both`: its logits are an output too."""
    b = NetworkBuilder("classifier", 0)
    x = b.op("Relu", "relu", b.conv("conv", b.input("x", 3, 4, 4), 6, 3))
    logits = b.linear("fc", b.global_pool("pool", x), 5)
    if last is None or both:
        b.output("logits", logits)
    if last is not None:
        b.output("scores", b.op(last, "last", logits, **({"axis": -1} if last == "Softmax" else {})))
    return b.build()


def judged_outputs(model: CheckedModel, batch: Batch) -> Outputs:
    return Judge.of(model, [batch]).samples[0][1]


@pytest.mark.parametrize("last", ["Softmax", "Sigmoid"])
def test_in_front_of_what_flattens(last: str) -> None:
    plain, flattened = simulator(classifier(None)), simulator(classifier(last))
    batch = classifier(None).batch(6)
    logits = plain.backend_model.run(batch)["logits"]
    np.testing.assert_array_equal(judged_outputs(flattened.backend_model, batch)["scores"], logits)
    plain.calibrate(batch)
    flattened.calibrate(batch)
    quantized = judged_outputs(flattened.backend_model, batch)["scores"]
    assert 0 < np.abs(quantized - logits).max() < np.abs(logits).max() / 4
    figure = mean(flattened.simulation.judge.ratios(flattened.backend_model))
    assert figure == pytest.approx(np.mean(sample_decibels({"y": logits}, {"y": quantized})))
    # The batch that files are compared on keeps the outputs themselves.
    reference, outputs = flattened.simulation.reference
    np.testing.assert_array_equal(outputs["scores"], flattened.run_float(reference)["scores"])


def test_a_grid_that_cuts_the_logits_is_seen() -> None:
    sim, batch = simulator(classifier("Softmax")), classifier(None).batch(6)
    sim.calibrate(batch)
    judge = sim.simulation.judge
    assert judge is not None
    logits = Tensor("fc")
    before, encoding = mean(judge.ratios(sim.backend_model)), sim.encodings[logits]
    sim.backend_model.set_quantizers({logits: replace(encoding, scale=encoding.scale * np.float32(0.05))})
    assert mean(judge.ratios(sim.backend_model)) < before - 20


def test_a_model_without_float_outputs_keeps_its_steps() -> None:
    assert is_better([[]], [[]], by=1.0)
    assert not is_better([[3.0, 3.1]], [[3.0, 3.1]])


def test_outputs_that_are_lost_are_the_worst() -> None:
    exact = np.ones((3, 4), np.float32)
    for lost in (np.nan, np.inf):
        other = exact.copy()
        other[1, 2] = lost
        assert sample_decibels({"y": exact}, {"y": other}) == [200.0, -200.0, 200.0]
        assert sample_decibels({"y": other}, {"y": other}) == [200.0] * 3


def test_logits_that_something_else_reads_stay_apart() -> None:
    sim = simulator(classifier("Softmax", both=True))
    batch = classifier(None).batch(6)
    judged, outputs = judged_outputs(sim.backend_model, batch), sim.backend_model.run(batch)
    np.testing.assert_array_equal(judged["logits"], outputs["logits"])
    np.testing.assert_array_equal(judged["scores"], outputs["logits"])


def ended(last: str, *further: str) -> Network:
    """Scores that are turned on their way out; `further` reads them too."""
    b = NetworkBuilder("classifier", 0)
    x = b.op("Relu", "relu", b.conv("conv", b.input("x", 3, 4, 4), 6, 3))
    logits = b.linear("fc", b.global_pool("pool", x), 5)
    scores = b.op(last, "last", logits, **({"axis": -1} if last == "Softmax" else {}))
    b.output("scores", b.op("Transpose", "turn", scores, perm=(1, 0)))
    for op in further:
        b.output(op, b.op(op, op, scores, **({"axis": -1, "keepdims": 0} if op == "ArgMax" else {})))
    return b.build()


@pytest.mark.parametrize("last", ["Softmax", "Sigmoid"])
def test_what_only_moves_the_scores_is_looked_through(last: str) -> None:
    batch = classifier(None).batch(6)
    logits = simulator(classifier(None)).backend_model.run(batch)["logits"]
    np.testing.assert_array_equal(judged_outputs(simulator(ended(last)).backend_model, batch)["scores"], logits)


@pytest.mark.parametrize(("further", "judged"), [("ArgMax", {"scores"}), ("Exp", set())])
def test_scores_that_become_a_class_are_still_the_last(further: str, judged: set[str]) -> None:
    """Not those that floats are computed from, as from the weights of an attention."""
    graph = ended("Softmax", further).graph
    if further == "ArgMax":
        graph = replace(graph, tensors={**graph.tensors, further: TensorInfo(("batch",), "int64")})
    assert set(_flattened(graph)) == judged


def test_a_model_that_is_the_float_model_is_perfect() -> None:
    sim, batch = simulator(classifier(None)), classifier(None).batch(3)
    judge = Judge.of(sim.backend_model, [batch])
    assert judge.ratios(sim.backend_model) == [[200.0] * 3]


class Remember:
    """A technique that observes, and remembers how many samples it was shown."""

    seen: list[int] = []  # noqa: RUF012
    uses_data = True

    def requests(self, context: TechniqueContext) -> Requests:
        return Requests([Request(Tensor(context.graph.inputs[0]), ChannelMoments())])

    def apply(self, context: TechniqueContext) -> TechniqueReport:
        (moments,) = context.observe(self.requests(context)).float
        self.seen.append(moments.count)
        return TechniqueReport("Remember")


@pytest.mark.parametrize(("batches", "hold_back", "fitted"), [(8, True, 6), (7, True, 7), (8, False, 8)])
def test_samples_that_judge_are_held_back_where_there_are_enough(batches: int, hold_back: bool, fitted: int) -> None:
    network = chain(1, spread=0)
    data = [network.batch(8, seed) for seed in range(batches)]
    sim = simulator(network)
    Remember.seen.clear()
    recipe = Recipe("test", "", (Step(Remember),), judge_samples=16, hold_back=hold_back)
    run_recipe(sim.simulation, recipe, sim.passes(Dataset(data, sim.graph), None, None, None), MinMaxRange())
    positions = int(np.prod(data[0]["x"].shape)) // data[0]["x"].shape[1]
    assert Remember.seen == [fitted * positions]
    sim.calibrate(data)
    np.testing.assert_array_equal(sim.simulation.judge.samples[0][0]["x"], data[0]["x"])
    assert sim.statistics.batches == batches  # ranges are of all of the data


def test_what_balancing_did_not_touch_is_not_observed_again() -> None:
    b = NetworkBuilder("two", 0)
    x = b.input("x", 4, 8, 8)
    h = b.op("Relu", "act1", b.conv("first", x, 8, 1))
    h = b.op("Relu", "act2", b.conv("second", h, 8, 3))
    b.output("y", b.conv("third", h, 3, 1))
    network = b.build()
    weights = {name: np.array(value) for name, value in network.weights.items()}
    weights["second.weight"][:4] *= np.float32(2**-5)
    weights["third.weight"][:, :4] *= np.float32(2**4)
    network = Network(network.name, network.graph, weights)
    data = [network.batch(8, seed) for seed in range(2)]
    fresh, sim = simulator(network), simulator(network)
    dataset = Dataset(data, sim.graph)
    passes = sim.passes(dataset, None, None, None)
    steps = (Step(BalanceChannels), Step(CorrectBias, keep=True))
    run_recipe(sim.simulation, Recipe("test", "", steps, judge_samples=8), passes, MinMaxRange())
    assert [step.outcome for step in sim.steps] == ["kept", "kept"]
    assert passes.count == 2
    fresh.apply(BalanceChannels(), data=data)
    fresh.apply(CorrectBias(), data=data)
    fresh.calibrate(data)
    sim.calibrate(dataset._source)
    assert sim.encodings == fresh.encodings


def test_a_gain_counts_beyond_its_standard_error() -> None:
    rng = np.random.default_rng(0)
    was = [rng.normal(20, 3, 16).tolist(), rng.normal(20, 3, 16).tolist()]
    by_chance = np.tile([1.0, -0.8], 8)  # 0.1 dB on average, standard error 0.16
    assert not is_better([[*np.add(batch, by_chance)] for batch in was], was)
    assert is_better([[*np.add(batch, 0.1)] for batch in was], was)
    assert not is_better([[*np.add(batch, 0.1)] for batch in was], was, by=0.2)
    assert not is_better(was, was)
    assert is_better(was, [[float("-inf")]])
    assert not is_better([[float("-inf")]], was)


def test_an_output_of_one_number_counts_for_less() -> None:
    """Its decibels scatter by 10: a probability beside a state of 100 numbers would decide by chance."""
    rng = np.random.default_rng(0)
    exact = {"p": rng.normal(1, 0.1, (4, 1)), "state": rng.normal(0, 1, (4, 100)), "class": np.arange(4)}
    other = {"p": exact["p"] * 1.1, "state": exact["state"] * 1.01, "class": np.arange(4)}  # 20 and 40 dB
    assert decibels_of_samples(exact, other) == pytest.approx([(20 + 8 * 40) / 9] * 4)
    turned = {name: {**outputs, "state": outputs["state"].T} for name, outputs in (("e", exact), ("o", other))}
    (whole,) = decibels_of_samples(turned["e"], turned["o"])
    assert whole == pytest.approx((20 + 4 * 40) / 5)
    alone = {"p": exact["p"]}
    assert decibels_of_samples(alone, other) == sample_decibels(alone, other) == pytest.approx([20.0] * 4)
    assert decibels_of_samples({"class": np.arange(4)}, other) == []


def test_a_gain_of_few_batches_is_no_gain() -> None:
    """Rows of a batch may be steps of one sequence, which gain alike: of eight sequences two gain."""
    was = [[20.0] * 50 for _ in range(8)]
    now = [[20.0 + gain] * 50 for gain in (4.0, 3.0, *[-0.5] * 6)]
    assert not is_better(now, was)
    assert is_better([[20.0 + gain] * 50 for gain in (1.0, 0.8, *[0.7] * 6)], was)


@pytest.mark.parametrize("at_hand", [True, False])
def test_samples_that_judge_are_spread_over_data_at_hand(at_hand: bool) -> None:
    network = chain(1, spread=0)
    data = [{"x": np.full_like(network.batch(1)["x"], index)} for index in range(40)]
    dataset = Dataset(data if at_hand else lambda: iter(data), network.graph)
    chosen = dataset.spread(10)
    assert chosen == tuple(range(0, 40, 4) if at_hand else range(10))
    assert _numbers(dataset.batches(chosen)) == list(chosen)
    rest = dataset.without(chosen)
    assert _numbers(rest) == [number for number in range(40) if number not in chosen]
    assert _numbers(rest.without([0, 2]).batches([0, 1])) == ([2, 5] if at_hand else [11, 13])
    assert _numbers(dataset.head) == []
    assert len(list(dataset)) == 40
    assert _numbers(dataset.head) == ([number * 40 // 16 for number in range(16)] if at_hand else list(range(16)))


def test_data_that_is_read_anew_is_read_once_for_the_samples() -> None:
    """A loader may shuffle, and loading may take long: what was taken of it judges."""
    network = chain(1, spread=0)
    rng, sim = np.random.default_rng(0), simulator(network)
    data = [network.batch(8, seed) for seed in range(8)]
    dataset = Dataset(lambda: iter([data[i] for i in rng.permutation(8)]), sim.graph)
    passes = sim.passes(dataset, None, None, None)
    run_recipe(sim.simulation, Recipe("test", "", (Step(BalanceChannels),), 16), passes, MinMaxRange())
    np.testing.assert_array_equal(sim.simulation.judge.samples[0][0]["x"], dataset.first_seen["x"])


def _numbers(batches: Iterable[Batch]) -> list[int]:
    return [int(batch["x"].flat[0]) for batch in batches]


def _in_batches(*means: float) -> Ratios:
    return [[value - 1.0, value + 1.0] for value in means]


@pytest.mark.parametrize(
    ("lead", "behind"),
    [
        ([0.6, 0.9, 0.7, 0.8], True),  # 0.75 +- 0.06
        ([0.6, 0.9, 0.7], False),  # too few batches to tell
        ([2.1], False),  # two samples of one batch
        ([2.1, 2.2], True),
        ([40.0, -30.0], False),  # 5 on average, and as likely none
        ([3.0, -1.5, 2.5, -1.0], False),  # 0.75 +- 1.2
        ([0.05, 0.05, 0.05, 0.05], False),  # within the margin
        ([float("inf")], True),
    ],
)
def test_what_is_surely_worse_is_not_run_on_the_other_samples(lead: list[float], behind: bool) -> None:
    rival = _in_batches(20.0, 31.0, 25.0, 22.0, 27.0)
    ratios = [[value - ahead for value in batch] for batch, ahead in zip(rival, lead, strict=False)]
    assert is_behind(ratios, rival) == behind


def test_the_better_one_is_seldom_given_up() -> None:
    """Better by a decibel that scatters by four: four samples may look alike by chance, and are looked at early."""
    leads, given_up = np.random.default_rng(0).normal(-1.0, 4.0, (500, 19)), 0
    for drawn in leads:
        rival = [[30.0 + float(lead)] for lead in drawn]
        given_up += any(is_behind([[30.0]] * count, rival[:count]) for count in range(1, 20))
    assert given_up <= 5


@given(st.lists(st.tuples(st.integers(1, 40), st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=8))
def test_none_is_behind_and_ahead_at_once(batches: list[tuple[int, float, float]]) -> None:
    """Batches of other sizes, the last of few samples among them, count alike in one question and not in the other."""
    ours, theirs = ([[batch[which]] * batch[0] for batch in batches] for which in (1, 2))
    assert not (is_behind(ours, theirs) and is_ahead(ours, theirs))


def test_one_sample_shows_no_error() -> None:
    assert not is_better([[10.001]], [[10.0]])
    assert is_better([[10.2]], [[10.0]])


def test_a_rival_that_failed_is_no_rival() -> None:
    assert not is_behind(_in_batches(20.0, 31.0, 25.0, 22.0, 27.0), [[float("-inf")]])


def test_what_was_measured_is_known_again() -> None:
    sim, batch = simulator(classifier(None)), classifier(None).batch(3)
    judge, encodings = Judge.of(sim.backend_model, [batch] * 3), sim.encodings
    judge.remember("one", encodings, _in_batches(20.0, 20.0))  # of three batches the third was not run
    assert judge.known("one", encodings, None) is None
    assert judge.known("one", encodings, _in_batches(21.0, 20.0, 20.0)) is None
    assert judge.known("one", encodings, _in_batches(23.0, 23.0, 20.0)) == _in_batches(20.0, 20.0)
    judge.remember("two", encodings, _in_batches(20.0, 21.0, 22.0))
    assert judge.known("two", encodings, None) == _in_batches(20.0, 21.0, 22.0)
    assert judge.known("three", encodings, None) is None


def test_the_last_state_is_not_measured_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """What judging a step has measured, choosing the scheme in the end does not measure again."""
    runs: list[object] = []
    measured = Judge.ratios
    monkeypatch.setattr(Judge, "ratios", lambda *args: runs.append(args) or measured(*args))
    network = chain(1)
    data, sim = [network.batch(8, seed) for seed in range(2)], simulator(network)
    steps = (Step(BalanceChannels), Step(CorrectBias, keep=True))
    dataset = Dataset(data, sim.graph)
    passes = sim.passes(dataset, None, None, None)
    run_recipe(sim.simulation, Recipe("test", "", steps, judge_samples=8), passes, Auto())
    assert [step.outcome for step in sim.steps] == ["kept", "kept"]
    before = len(runs)
    calibrate(sim.simulation, passes, Auto(), None)
    assert len(runs) - before == 1  # without the corrections


@pytest.mark.parametrize(("batches", "taken"), [(4, 4), (24, 8), (40, 10), (100, 16), (200, 25), (2000, 64)])
def test_how_much_of_the_data_judges(batches: int, taken: int) -> None:
    network = chain(1, spread=0)
    recipe = Recipe("own", "", (), judge_samples=16)
    assert len(_judged(Dataset([network.batch(1)] * batches, network.graph), recipe, may_hold_back=True)[0]) == taken


def test_samples_are_counted_along_the_batch() -> None:
    """A table beside the images, of many rows, is no sample."""
    b = NetworkBuilder("anchors", 0)
    table = b.input("table", 4)
    b.output("y", b.op("Add", "sum", b.op("Relu", "relu", b.input("x", 4)), table))
    graph = b.build().graph
    fixed = replace(graph.tensors["table"], shape=(100, 4))
    graph = replace(graph, tensors={**graph.tensors, "table": fixed})
    data = [{"x": np.ones((1, 4), np.float32), "table": np.ones((100, 4), np.float32)}] * 20
    recipe = Recipe("own", "", (), judge_samples=3)
    assert len(_judged(Dataset(data, graph), recipe, may_hold_back=True)[0]) == 3


def test_other_data_brings_its_own_samples() -> None:
    """What is calibrated anew is judged on the new data; outputs of a model that was edited since stay."""
    network = chain(1)
    data = [[network.batch(8, seed)] for seed in range(3)]
    sim = simulator(network)
    sim.calibrate(data[0], "auto")
    sim.calibrate(data[1], "auto")
    fresh = simulator(network)
    fresh.calibrate(data[1], "auto")
    assert sim.simulation.calibration == fresh.simulation.calibration
    np.testing.assert_array_equal(sim.simulation.judge.samples[0][0]["x"], data[1][0]["x"])
    np.testing.assert_array_equal(sim.simulation.reference[0]["x"], data[1][0]["x"])
    sim.apply(BalanceChannels(), data=data[1])
    assert sim.edits
    sim.calibrate(data[2], "auto")
    np.testing.assert_array_equal(sim.simulation.judge.samples[0][0]["x"], data[1][0]["x"])
