"""`isobit.compress` on the NumPy backend: budgets, ratios, what is left, and recipes."""

from __future__ import annotations

import json
import tomllib

import numpy as np
import pytest
from numpy_backend import NumpyBackend, NumpyModel
from technique_networks import assert_same_function

import isobit
from isobit.budget import Cost, layer_costs
from isobit.compression import Compressed
from isobit.errors import DataError, FormatError, RecipeError, TargetError
from isobit.plugins import registry
from isobit.recipes.recipe import Recipe, Step, parse_recipe
from isobit.techniques import FoldBatchNorms, SpatialSvd
from isobit.testing.networks import NETWORKS, Network, NetworkBuilder


def network() -> Network:
    """Three convolutions, the last two of them wide, and a linear layer; the inputs are few mixtures."""
    b = NetworkBuilder("net")
    x = b.input("x", 3, 8, 8)
    for index, out in enumerate((12, 16, 16)):
        x = b.op("Relu", f"relu{index}", b.conv(f"conv{index}", x, out, 3))
    b.output("logits", b.linear("fc", b.global_pool("gap", x), 6))
    return b.build()


def data(samples: int = 32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    waves = rng.normal(size=(samples, 2, 8, 8)).cumsum(axis=2).cumsum(axis=3)
    return {"x": np.einsum("ck,nkhw->nchw", [[1, 0.2], [0.5, 1], [0.1, 0.3]], waves).astype(np.float32)}


def compress(*arguments, **settings) -> Compressed:
    net = network()
    return isobit.compress(NumpyModel(net.graph, net.weights), *arguments, backend=NumpyBackend(), **settings)


@pytest.mark.parametrize("cost", ["macs", "parameters", "bytes"])
@pytest.mark.parametrize("select", ["integer-program", "greedy"])
def test_the_share_that_is_kept_is_the_one_asked_for(cost: str, select: str) -> None:
    result = compress(data(), keep=0.6, cost=cost, select=select)
    graph = result.backend_model.graph
    after = Cost.sum(layer_costs(graph, registry().target("onnxruntime-cpu").costs[0]).values())
    assert after == result.report.after
    assert after.of(cost) / result.report.before.of(cost) == pytest.approx(result.report.kept)
    assert 0.594 <= result.report.kept <= 0.6
    judged = {trial.words for trial in result.report.trials}
    assert len([t for t in result.report.trials if t.chosen]) == (1 if judged else 0)


def test_all_of_it_is_kept() -> None:
    result = compress(data(), keep=1.0)
    assert_same_function(result.backend_model.run(data(2)), compress(keep=1.0).backend_model.run(data(2)))
    assert result.report.notes == ("nothing was changed: keep is 1",)
    assert result.recipe.steps == ()
    assert result.before is not result.backend_model  # what trains is no teacher
    assert result.report.kept == 1


def test_without_data_it_is_said_that_weights_decided() -> None:
    result = compress(keep=0.7)
    assert not any(layer.from_data for layer in result.report.layers)
    assert any(note.startswith("no data: ") for note in result.report.notes)
    assert result.report.trials == ()
    assert "error of the weights" in str(result.report)


@pytest.mark.parametrize(
    "method", ["weight-svd", ["spatial-svd", "tucker-2", "weight-svd"], ["channel-pruning", "spatial-svd", "tucker-2"]]
)
def test_a_recipe_does_the_very_same_again(method) -> None:
    result = compress(data(), keep=0.5, method=method)
    text = result.recipe.to_toml()
    assert tomllib.loads(text)["steps"]
    again = compress(data(), recipe=parse_recipe(text, "here", registry().techniques()))
    for name, value in result.backend_model.run(data(4)).items():
        np.testing.assert_array_equal(again.backend_model.run(data(4))[name], value)
    assert again.report.kept == pytest.approx(result.report.kept)
    folding = Recipe("r", "", (Step(FoldBatchNorms),))
    with pytest.raises(RecipeError, match="FoldBatchNorms does not make a network smaller"):
        compress(recipe=folding)


def test_ratios_by_hand_and_layers_left_out() -> None:
    result = compress(
        data(), keep=0.7, method="weight-svd", ratios={"conv*": 0.9, "conv1": 0.4, "fc": 1.0}, exclude="conv0"
    )
    layers = {layer.name: layer.after / layer.before for layer in result.report.layers}
    assert layers.keys() == {"conv1", "conv2"}
    assert 0.3 < layers["conv1"] <= 0.4
    assert 0.8 < layers["conv2"] <= 0.9
    assert result.report.left == {"conv0": "left out by exclude 'conv0'", "fc": "its ratio is 1"}
    # a layer that cannot be so small is as small as it can be
    tiny = compress(data(), keep=0.9, method="weight-svd", ratios={"conv1": 0.001})
    made = next(layer for layer in tiny.report.layers if layer.name == "conv1")
    assert made.words == "rank 1 of 16"
    nearest = f"ratios: conv1 cannot keep 0.001 of its macs, {made.after / made.before:.3g} is the nearest"
    assert nearest in tiny.report.notes


def test_layers_that_no_method_knows_are_named() -> None:
    """Recurrent ones for one, which may hold most of the weights."""
    net = NETWORKS["recurrent"]()
    model = NumpyModel(net.graph, net.weights)
    for method in ("channel-pruning", "weight-svd"):
        left = isobit.compress(model, net.batch(4), method=method, backend=NumpyBackend(), trials=1).report.left
        for op in ("LSTM", "GRU"):
            (node,) = (node for node in net.graph.nodes if node.op == op)
            assert left[node.name] == f"{op}: these methods make no smaller one of it"


def test_ratios_of_methods_in_turn() -> None:
    """A ratio is met by the first method that can, and what it made of the layer stays; what none can is said."""
    methods = ["spatial-svd", "channel-pruning"]
    result = compress(data(), keep=0.6, method=methods, ratios={"conv1": 0.5, "fc": 0.5}, exclude="conv2", trials=1)
    (split,) = (layer for layer in result.report.layers if layer.name == "conv1")
    assert (split.method, split.after / split.before <= 0.5) == ("spatial-svd", True)
    parts = [node for node in result.backend_model.graph.nodes if node.name.startswith("conv1.")]
    rank = int(split.words.split()[1])
    assert [result.backend_model.graph.weights[node.inputs[1]].shape[0] for node in parts] == [rank, 16]
    assert any(note.startswith("ratios: fc stays whole: ") for note in result.report.notes)
    alone = compress(data(), keep=0.9, method="spatial-svd", ratios={"fc": 0.5}, trials=1)
    assert "ratios: 'fc' reaches no layer that these methods make smaller" in alone.report.notes


def test_sizes_are_multiples() -> None:
    result = compress(data(), keep=0.7, method=["weight-svd", "spatial-svd"], multiple=4)
    ranks = [rank for step in result.recipe.steps for rank in step.settings["ranks"].values()]
    assert ranks
    assert all(rank % 4 == 0 for rank in ranks)


def test_what_is_out_of_reach_is_said_with_what_is_near() -> None:
    result = compress(data(), keep=0.001, method="spatial-svd")
    assert any("keep=0.001 of the macs is out of reach" in note for note in result.report.notes)
    assert {layer.words for layer in result.report.layers} >= {"rank 1 of 48"}
    nothing = compress(data(), keep=0.5, method="spatial-svd", exclude="Conv")
    assert "nothing was changed: no layer has a size that serves" in nothing.report.notes
    assert nothing.report.kept == 1


def test_few_evaluations_choose_and_greedy_takes_ten_a_layer() -> None:
    calls = []

    def evaluate(run) -> float:
        calls.append(run(data(4))["logits"])
        return -float(np.square(calls[-1] - calls[0]).sum())

    result = compress(data(), evaluate, keep=0.5, method="weight-svd", trials=3)
    assert len(calls) == result.report.evaluations <= 4
    assert result.report.judged_by == "evaluate"
    scores = [trial.score for trial in result.report.trials]
    assert max(scores) == next(trial.score for trial in result.report.trials if trial.chosen)
    calls.clear()
    greedy = compress(data(), evaluate, keep=0.5, method="weight-svd", select="greedy")
    assert 20 < len(calls) <= 41
    assert greedy.report.kept <= 0.5
    with pytest.raises(DataError, match="evaluate returned nan"):
        compress(data(), lambda run: float("nan"), keep=0.5)


def test_the_report_as_json_holds_the_curves() -> None:
    report = json.loads(compress(data(), keep=0.5).report.to_json())
    assert [point["keep"] for point in report["curve"]] == sorted((p["keep"] for p in report["curve"]), reverse=True)
    assert any(name.startswith("conv1 (") for name in report["layer_curves"])
    assert report["before"]["macs"] > report["after"]["macs"]


def test_milliseconds_are_a_cost_where_the_target_tells_them() -> None:
    result = compress(data(), keep=0.7, cost="milliseconds", trials=1)
    assert 0.67 <= result.report.kept <= 0.7
    assert result.report.before.milliseconds > result.report.after.milliseconds > 0


def test_channels_outside_the_blocks_of_the_runtime_are_told() -> None:
    """Those that the smaller network has more than the one before; sizes that fill blocks say nothing."""
    notes = {}
    for multiple in (1, 8):
        result = compress(data(), keep=0.7, method="channel-pruning", multiple=multiple, trials=1)
        after = result.backend_model.graph
        counts = [after.weights[n.inputs[1]].shape[0] for n in after.nodes if n.op == "Conv"]
        more = sum(count % 8 > 0 for count in counts) - 1  # the first has 12 before
        notes[multiple] = [note for note in result.report.notes if "no multiple of 8" in note]
        assert (more > 0) == (multiple == 1)
        assert not more > 0 or notes[multiple][0].startswith(
            f"convolutions whose channels are no multiple of 8: {more}"
        )
    assert not notes[8]


def test_a_method_may_be_given_with_its_settings() -> None:
    result = compress(data(), keep=0.7, method=SpatialSvd(data_aware=False))
    assert not any(layer.from_data for layer in result.report.layers)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"keep": 0}, FormatError, "keep must be a share above 0 and at most 1, not 0"),
        ({"keep": 1.5}, FormatError, "keep must be a share"),
        ({"method": "spatial"}, FormatError, "no method is called 'spatial'.*known are .*spatial-svd"),
        ({"cost": "flops"}, FormatError, "no cost is called 'flops'"),
        ({"cost": "milliseconds", "target": "default"}, TargetError, "does not say what a multiply-accumulate takes"),
        ({"exclude": "conf*"}, FormatError, "exclude: 'conf\\*' matches no layer"),
        ({"exclude": 3}, FormatError, "exclude must be names or patterns of layers, not 3"),
        ({"ratios": [0.5]}, FormatError, "ratios must be shares by layer.* not \\[0.5\\]"),
        ({"method": ["weight-svd"] * 2}, FormatError, "method names 'weight-svd' twice"),
        ({"ratios": {"conv9": 0.5}}, FormatError, "ratios: 'conv9' matches no layer"),
        ({"ratios": {"conv1": 2}}, FormatError, "ratios\\['conv1'\\] must be a share"),
        ({"multiple": 0}, FormatError, "multiple must be a whole number of at least 1, not 0"),
        ({"select": "milp"}, FormatError, "select 'milp' is unknown"),
        ({"method": 3}, FormatError, "a method is a name or a technique that compresses, not 3"),
    ],
)
def test_bad_input(settings, error, words: str) -> None:
    with pytest.raises(error, match=words):
        compress(data(), **settings)
