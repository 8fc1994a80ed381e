"""Pruned channels: which groups there are, which channels go, and what the layers behind them make up for."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from numpy_backend import NumpyBackend, NumpyModel
from technique_networks import assert_same_function, opened

import isobit
from isobit.budget import Cost, layer_costs
from isobit.data import Dataset
from isobit.errors import FormatError
from isobit.techniques import Compresses, PruneChannels
from isobit.techniques.context import TechniqueContext
from isobit.techniques.layers.input_rows import input_rows
from isobit.techniques.low_rank.factorise import NO_DATA
from isobit.techniques.pruning import solved_weights
from isobit.techniques.pruning.channel_groups import edit_of, find_groups
from isobit.techniques.pruning.elimination import Reader, eliminated
from isobit.techniques.pruning.group_cost import group_cost
from isobit.testing import interpreter
from isobit.testing.networks import NETWORKS, Network, NetworkBuilder


def wide(channels: int = 12, duplicates: int = 0) -> Network:
    """Two convolutions and a linear layer; the last `duplicates` channels of the first are sums of others."""
    b = NetworkBuilder("wide")
    x = b.op("Identity", "same", b.conv("first", b.input("x", 3, 7, 7), channels))
    b.output("y", b.linear("fc", b.global_pool("gap", b.op("Relu", "relu", b.conv("second", x, 9))), 4))
    network = b.build()
    weights = dict(network.weights)
    for part in ("weight", "bias"):
        value = weights[f"first.{part}"].copy()
        for number in range(duplicates):
            value[channels - 1 - number] = value[number] - 0.5 * value[number + 1]
        weights[f"first.{part}"] = value
    return Network(network.name, network.graph, weights)


def context(network: Network, samples: int = 30) -> TechniqueContext:
    model = opened(network)
    return TechniqueContext(model, dataset=Dataset([network.batch(samples, 1)], model.graph) if samples else None)


# --- groups ---------------------------------------------------------------------------------------------------------


def groups_of(name: str) -> dict[str, tuple[int, tuple[str, ...], tuple[str, ...]]]:
    found, _ = find_groups(NETWORKS[name]().graph)
    return {group.name: (group.count, group.producers, group.readers) for group in found}


def test_groups_of_the_reference_networks() -> None:
    assert groups_of("conv_net") == {"conv1": (8, ("conv1",), ("conv2",)), "conv2": (16, ("conv2",), ("fc",))}
    assert groups_of("inverted_residual") == {
        "stem": (8, ("stem", "project"), ("expand", "fc")),
        "expand": (24, ("expand", "depthwise"), ("project",)),
    }
    assert groups_of("two_inputs") == {
        "fc_left": (8, ("fc_left",), ("fc_joined",)),
        "fc_right": (8, ("fc_right",), ("fc_joined",)),
    }
    assert groups_of("multi_head") == {"query": (2, ("query", "key", "value"), ("out",))}
    assert set(groups_of("attention")) == {"query", "value", "up"}


@pytest.mark.parametrize(
    ("name", "layer", "why"),
    [
        ("conv_net", "fc", "the channels of model output 'fc' cannot be removed"),
        ("two_inputs", "fc_joined", "the channels of model output 'gate' cannot be removed"),
        ("shared_weights", "fc1", "the channels of model input 'x' cannot be removed"),
        ("attention", "out", "the channels of model output 'add2' cannot be removed"),
        ("recurrent", "fc", "the channels of model output 'fc' cannot be removed"),
    ],
)
def test_what_stays_is_named(name: str, layer: str, why: str) -> None:
    assert find_groups(NETWORKS[name]().graph)[1][layer] == why


def test_a_tied_layer_names_the_others() -> None:
    """Each the other one, and not itself."""
    b = NetworkBuilder("tied")
    x = b.linear("stem", b.input("x", 6), 8)
    x = b.linear("first", b.op("Relu", "relu1", x), 8)
    x = b.linear("second", b.op("Relu", "relu2", x), 8, weight="first.weight")
    b.output("y", b.linear("last", x, 3))
    left = find_groups(b.build().graph)[1]
    assert left["stem"] == left["first"] == "the weight of first is shared with second"
    assert left["second"] == "the weight of second is shared with first"


def test_a_layer_of_one_channel_stays() -> None:
    assert find_groups(wide(1).graph)[1]["first"] == "it has one channel"


def test_products_of_two_tensors_are_not_measured() -> None:
    groups = {group.name: group for group in find_groups(NETWORKS["attention"]().graph)[0]}
    assert groups["query"].unmeasured == "scores (MatMul) sums products of two tensors over them"
    assert groups["query"].producers == ("query", "key")
    assert not groups["value"].unmeasured


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_costs_are_those_of_the_smaller_network(name: str) -> None:
    """Counted from shapes alone, and from the graph after the edit."""
    network = NETWORKS[name]()
    for group in find_groups(network.graph)[0]:
        model = opened(network)
        size = max(1, group.count // 3)
        expected = group_cost(model.graph, group, range(size))
        before = layer_costs(model.graph)
        model.edit([edit_of(model.graph, [(group, range(size))])])
        after = layer_costs(model.graph)
        assert expected == Cost.sum(after[node] for node in group.nodes)
        others = set(before) - set(group.nodes)
        assert [before[node] for node in others] == [after[node] for node in others]


# --- which channels go ----------------------------------------------------------------------------------------------


def least_squares(reader: Reader, columns: list[int]) -> float:
    """The power of the output that no weights of these columns make, by a root of the moments."""
    root = np.linalg.cholesky(reader.moments).T
    target = root @ reader.weight.T
    fitted = root[:, columns] @ np.linalg.lstsq(root[:, columns], target, rcond=None)[0]
    return float(np.square(target - fitted).sum()) / reader.power


def drawn_reader(seed: int, channels: int, taps: int) -> Reader:
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((channels * taps, channels * taps))
    rows = rng.standard_normal((400, channels * taps)) @ mix
    moments, weight = rows.T @ rows / 400, rng.standard_normal((3, channels * taps))
    power = float(((weight @ moments) * weight).sum())
    return Reader(moments, weight, np.repeat(np.arange(channels), taps), power, f"layer {seed}")


@pytest.mark.parametrize("taps", [1, 3])
def test_each_channel_that_goes_is_the_one_that_costs_least(taps: int) -> None:
    """Against least squares for every channel that could go, for two readers of the same channels at once."""
    readers = [drawn_reader(0, 6, taps), drawn_reader(1, 6, 2)]
    order, errors = eliminated(readers, 6)
    left = set(range(6))
    for gone, error in zip(order, errors, strict=True):
        shares = {
            channel: [least_squares(r, [i for i, c in enumerate(r.channel) if c in left - {channel}]) for r in readers]
            for channel in left
        }
        assert gone == min(shares, key=lambda channel: sum(shares[channel]))
        assert error == pytest.approx(1 - np.prod(1 - np.asarray(shares[gone])), rel=1e-6)
        left.discard(gone)


def test_many_channels_go_several_at_once() -> None:
    """The error is exact where a step ends, and near it in between."""
    reader = drawn_reader(2, 150, 1)
    order, errors = eliminated([reader], 150)
    assert sorted([*order, *set(range(150)) - set(order)]) == list(range(150))
    for count in (0, 9, 50, 148):
        error = least_squares(reader, sorted(set(range(150)) - set(order[: count + 1])))
        assert errors[count] == pytest.approx(error, rel=1e-5 if count in (9, 148) else 0.1, abs=1e-5)


def test_many_columns_of_little_damping_keep_their_sign() -> None:
    """Moments of few rows, inverted by halves: the condition is 1e7, and errors are those of least squares."""
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((200, 900)) * np.geomspace(1, 0.01, 900)
    moments = rows.T @ rows / 200
    moments += 1e-6 * np.trace(moments) / 900 * np.eye(900)
    weight = rng.standard_normal((3, 900))
    reader = Reader(moments, weight, np.repeat(np.arange(100), 9), float(((weight @ moments) * weight).sum()))
    order, errors = eliminated([reader], 100)
    assert np.all(np.diff(errors) >= -1e-9)
    stays = np.flatnonzero(~np.isin(reader.channel, order[:60]))
    part = np.linalg.solve(moments[np.ix_(stays, stays)], moments[stays] @ weight.T)
    exact = 1 - float((part * (moments[stays] @ weight.T)).sum()) / reader.power
    assert errors[59] == pytest.approx(exact, rel=1e-3, abs=1e-6)


def test_channels_that_say_nothing_go_first_and_for_nothing() -> None:
    """Constant channels, of moments that are damping alone, and of weights that are zero; more than go one by one."""
    reader = drawn_reader(4, 100, 1)
    weight, moments = reader.weight.copy(), reader.moments.copy()
    weight[:, 50:] = 0
    moments[50:, :], moments[:, 50:] = 0, 0
    moments[range(50, 100), range(50, 100)] = 1e-6
    order, errors = eliminated([Reader(moments, weight, reader.channel, reader.power)], 100)
    assert set(order[:50]) == set(range(50, 100))
    assert errors[:50] == [0.0] * 50
    assert np.all(np.diff(errors) >= 0)


def test_greedy_is_near_the_best_choice() -> None:
    reader = drawn_reader(3, 8, 1)
    order, errors = eliminated([reader], 8)
    assert len(set(order)) == 7
    best = min(least_squares(reader, list(kept)) for kept in combinations(range(8), 4))
    assert best <= errors[3] <= 1.5 * best


# --- what is done ---------------------------------------------------------------------------------------------------


def test_channels_that_follow_from_others_go_for_nothing() -> None:
    """Three of twelve are sums of others: nine compute the same, by weights that are solved again."""
    network = wide(12, 3)
    run = context(network, 80)
    batch = network.batch(5, 2)
    before = run.model.run(batch)
    (choice,) = (c for k in PruneChannels().candidates(run) if k.name == "first" for c in k.choices if c.size == 9)
    technique = PruneChannels().chosen({"first": choice})
    report = technique.apply(run)
    assert report.changed[0].startswith("first: 9 of 12 channels; error of the outputs by their power: second ")
    np.testing.assert_allclose(run.model.run(batch)["y"], before["y"], atol=2e-3 * np.abs(before["y"]).max())
    plain = context(network, 0)
    technique.apply(plain)
    lost = [np.abs(r.model.run(batch)["y"] - before["y"]).max() for r in (run, plain)]
    assert lost[1] > 20 * lost[0]


def test_a_mean_far_above_the_deviations_leaves_moments_that_can_be_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding of squares of means takes more from two equal channels than damping adds, where there are many rows."""
    monkeypatch.setattr(solved_weights, "_DAMPING", 0.0)
    network = wide(6)
    weight = network.weights["second.weight"].copy()
    weight[5:] = weight[:4]
    far = {"second.weight": weight, "second.bias": np.full(9, 1e6, np.float32)}
    run = context(Network("far", network.graph, {**network.weights, **far}), 40)
    rows = input_rows(run, ["fc"])["fc"]
    moments = solved_weights.Moments.of(run.model, run.model.graph.node("fc"), rows)
    assert np.linalg.eigvalsh(moments.second).min() > 0
    assert PruneChannels(0.5).apply(run).changed
    assert all(np.isfinite(run.model.weight(f"{name}.weight")).all() for name in ("second", "fc"))


def test_the_error_that_is_said_is_the_one_on_the_data() -> None:
    network = wide()
    run = context(network, 60)
    (first, *_) = (c for c in PruneChannels().candidates(run) if c.name == "first")
    choice = next(choice for choice in first.choices if choice.size == 7)
    whole, batch = run.model.copy(), network.batch(60, 1)
    PruneChannels().chosen({"first": choice}).apply(run)
    outputs, expected = (interpreter.interpret(m.graph, m.weight, batch)["second"] for m in (run.model, whole))
    centered = expected - expected.mean((0, 2, 3), keepdims=True)
    error = np.square(outputs - expected).sum() / np.square(centered).sum()
    assert error == pytest.approx(choice.error, rel=0.05)
    assert np.abs((outputs - expected).mean((0, 2, 3))).max() < 1e-4 * np.abs(expected).max()


def test_candidates_lose_cost_and_gain_error() -> None:
    run = context(NETWORKS["inverted_residual"]())
    technique = PruneChannels()
    assert isinstance(technique, Compresses)
    candidates = {candidate.name: candidate for candidate in technique.candidates(run, multiple=4)}
    assert [choice.size for choice in candidates["expand"].choices] == [20, 16, 12, 8, 4]
    assert set(candidates["expand"].layers) >= {"expand", "depthwise", "project"}
    assert candidates["fc"].why == "the channels of model output 'fc' cannot be removed"
    for candidate in candidates.values():
        assert candidate.from_data or not candidate.choices
        errors = [choice.error for choice in candidate.choices]
        costs = [choice.cost.macs for choice in candidate.choices]
        assert errors == sorted(errors)
        assert costs == sorted(costs, reverse=True)
        assert not costs or costs[0] < candidate.full.macs


def test_what_is_chosen_is_applied_and_nothing_else() -> None:
    network = NETWORKS["conv_net"]()
    run = context(network)
    (choice,) = (c for k in PruneChannels().candidates(run) if k.name == "conv2" for c in k.choices if c.size == 5)
    technique = PruneChannels().chosen({"conv2": choice})
    report = technique.apply(run)
    assert technique.keep == 1
    assert [text.partition(":")[0] for text in report.changed] == ["conv2"]
    assert run.model.weight("conv2.weight").shape[0] == run.model.weight("fc.weight").shape[1] == 5
    assert run.model.weight("conv1.weight").shape[0] == 8
    again = context(network, 0)  # without the data the same channels go
    technique.apply(again)
    kept = technique.channels["conv2"]
    np.testing.assert_array_equal(again.model.weight("fc.weight"), network.weights["fc.weight"][:, kept])


def test_without_data_magnitudes_count_and_it_is_said() -> None:
    network = wide(4)
    weights = {**network.weights, "second.weight": np.ones_like(network.weights["second.weight"])}
    factors = np.asarray([1, 9, 5, 3], np.float32).reshape(-1, 1, 1, 1)
    weights["first.weight"] = network.weights["first.weight"] * factors
    run = context(Network("wide", network.graph, weights), 0)
    report = PruneChannels(0.5).apply(run)
    assert report.notes == (f"{NO_DATA}; no weights are solved again",)
    np.testing.assert_array_equal(run.model.weight("first.weight"), weights["first.weight"][[1, 2]])


def test_keep_1_changes_nothing_and_says_so() -> None:
    run = context(wide())
    report = PruneChannels(1.0).apply(run)
    assert report.changed == ()
    assert report.notes == ("keep is 1 and no channels are given: nothing changes",)
    batch = wide().batch(2)
    assert_same_function(run.model.run(batch), opened(wide()).run(batch))


def test_a_multiple_that_no_group_has_is_named() -> None:
    left = PruneChannels(0.5, multiple=16).apply(context(wide())).left
    assert left["first"] == "16 channels cost more than 50% of its multiply-accumulates"
    kept = PruneChannels(0.9, multiple=8).apply(context(wide())).changed
    assert [text.split(";")[0] for text in kept] == ["first: 8 of 12 channels", "second: 8 of 9 channels"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": 0}, "keep must be above 0"),
        ({"multiple": 0}, "multiple must be an integer from 1 on, not 0"),
        ({"channels": {"firsts": [0]}}, "no channels of 'firsts' can be removed .did you mean 'first'?"),
        ({"channels": {"fc": [0]}}, "no channels of 'fc' can be removed: the channels of model output"),
        ({"channels": {"first": [12]}}, "channels of 'first' must be some of 0 to 11"),
        ({"channels": {"first": []}}, "channels of 'first' must be some of 0 to 11"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        PruneChannels(**settings).apply(context(wide(), 0))


def test_a_layer_that_follows_another_is_named_with_it() -> None:
    with pytest.raises(FormatError, match="the channels of 'project' go by the name of 'stem'"):
        PruneChannels(1.0, {"project": [0]}).apply(context(NETWORKS["inverted_residual"](), 0))


@pytest.mark.parametrize("keep", [0.5, 0.2])
def test_a_budget_is_met_where_layers_lose_inputs_and_outputs(keep: float) -> None:
    """Each layer between two groups is in both: what they save does not add up, and is reckoned together."""
    b = NetworkBuilder("deep")
    x = b.input("x", 3, 6, 6)
    for name in ("one", "two", "three"):
        x = b.op("Relu", f"{name}_relu", b.conv(name, x, 40))
    b.output("y", b.linear("fc", b.global_pool("gap", x), 4))
    network = b.build()
    result = isobit.compress(
        NumpyModel(network.graph, network.weights),
        [network.batch(20)],
        backend=NumpyBackend(),
        method="channel-pruning",
        keep=keep,
        trials=1,
    )
    costs = [Cost.sum(layer_costs(g).values()).macs for g in (result.backend_model.graph, network.graph)]
    assert costs[0] / costs[1] == pytest.approx(keep, rel=0.01)
    assert result.report.kept == pytest.approx(costs[0] / costs[1])
