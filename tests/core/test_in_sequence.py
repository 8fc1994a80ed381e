"""Layers that are solved again for what the smaller network gives them: on data that nothing was learned from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy_backend import NumpyBackend, NumpyModel

import isobit
from isobit.compression import Compressed, in_sequence, stage
from isobit.data import Dataset
from isobit.graph import Graph, Node, TensorInfo
from isobit.techniques.layers.corrected import corrected
from isobit.testing.networks import Network, NetworkBuilder


def network() -> Network:
    """Convolutions one behind the other, and a linear layer."""
    b = NetworkBuilder("net")
    x = b.input("x", 3, 6, 6)
    for index, out in enumerate((12, 16, 16)):
        x = b.op("Relu", f"relu{index}", b.conv(f"conv{index}", x, out, 3))
    b.output("logits", b.linear("fc", b.global_pool("gap", x), 6))
    return b.build()


def batches(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    waves = rng.normal(size=(count, 16, 2, 6, 6)).cumsum(axis=3).cumsum(axis=4)
    mixed = np.einsum("ck,bnkhw->bnchw", [[1, 0.2], [0.5, 1], [0.1, 0.3]], waves)
    return [{"x": batch.astype(np.float32)} for batch in mixed]


def compress(data, **settings) -> Compressed:
    net = network()
    model = NumpyModel(net.graph, net.weights)
    return isobit.compress(model, data, backend=NumpyBackend(), trials=1, **{"keep": 0.25, **settings})


def quality(found: Compressed) -> float:
    """How near the outputs are on fresh samples, a mean of decibels."""
    (fresh,) = batches(1, 1)
    wanted = found.before.run(fresh)["logits"]
    left = np.square(found.backend_model.run(fresh)["logits"] - wanted).sum(axis=1)
    return float(10 * np.log10(np.square(wanted).sum(axis=1) / left).mean())


@pytest.mark.parametrize("method", ["weight-svd", ["weight-svd", "channel-pruning"]])
def test_outputs_of_other_data_are_nearer(monkeypatch: pytest.MonkeyPatch, method) -> None:
    found = compress(batches(4), method=method)
    assert any("solved again in sequence: outputs from" in note for note in found.report.notes)
    again = compress(batches(4), recipe=found.recipe)
    monkeypatch.setattr(stage, "solved_in_sequence", lambda whole, small, *_: (small, ""))
    without = compress(batches(4), method=method)
    assert found.report.after == without.report.after
    assert quality(found) > quality(without)
    assert quality(again) == quality(found)


@pytest.mark.parametrize("by_recipe", [False, True])
def test_evaluate_judges_all_of_it_once(by_recipe: bool) -> None:
    """Outputs come nearer; where evaluate says less all the same, all of it is taken back, which is said."""
    data, (fresh,) = batches(4), batches(1, 1)
    plain = compress(data[:1], method="weight-svd")
    again = {"recipe": plain.recipe} if by_recipe else {"method": "weight-svd"}
    notes, outputs = [], []
    for last in (0.5, 1.0):
        told = iter([2.0, 1.0, last])  # of the network as it came, of the smaller one, and of that solved again
        found = compress(data, evaluate=lambda _, told=told: next(told), **again)
        assert (found.report.evaluations, found.report.score_before) == (3, 2.0)
        notes += [note for note in found.report.notes if "in sequence" in note]
        outputs.append(found.backend_model.run(fresh)["logits"])
    assert notes[0].endswith(" dB on samples held back; evaluate from 1 to 0.5, so they are taken back")
    assert notes[1].endswith(" dB on samples held back; evaluate from 1 to 1")
    solved = compress(data, **again).backend_model.run(fresh)["logits"]
    np.testing.assert_array_equal(outputs[1], solved)
    assert not np.allclose(outputs[0], solved, rtol=1e-3)


@pytest.mark.parametrize("sparse", [False, True])
def test_zeros_of_sparse_weights_stay(sparse: bool) -> None:
    """A layer behind factors is solved again, but where its zeros are there on purpose."""
    net = network()
    weights = {name: np.array(value) for name, value in net.weights.items()}
    last = net.graph.node("fc").inputs[1]
    weights[last][:, ::2] *= not sparse
    model, settings = NumpyModel(net.graph, weights), {"method": "spatial-svd", "keep": 0.25, "trials": 1}
    small = isobit.compress(model, batches(4), backend=NumpyBackend(), **settings)
    assert np.array_equal(small.backend_model.weight(last), weights[last]) == sparse


def test_data_of_one_pass_serves_methods_that_share_the_layers() -> None:
    """Of all layers, also those that the second method alone splits; nothing is left to solve them again by."""
    found = compress(iter(batches(4)), example_inputs=batches(1)[0], method=["spatial-svd", "weight-svd"])
    assert found.report.layers
    assert all(layer.from_data for layer in found.report.layers)
    assert not any("sequence" in note for note in found.report.notes)


def test_the_head_of_the_data_is_not_learned_from() -> None:
    """Data of one batch is no more than its head, and nothing is solved on it."""
    assert not any("sequence" in note for note in compress(batches(1), method="channel-pruning").report.notes)


def test_samples_are_counted_along_the_axis_of_the_batch() -> None:
    """A side input of many rows beside two samples a batch does not end the pass after the first one."""
    shapes = {"x": ("batch", 4), "table": (600, 4)}
    tensors = {name: TensorInfo(shape, "float32") for name, shape in shapes.items()}
    nodes = [Node("add", "Add", ("x", "x"), ("y",)), Node("table_sum", "Add", ("table", "table"), ("z",))]
    tensors |= {"y": tensors["x"], "z": tensors["table"]}
    graph = Graph(tuple(nodes), ("x", "table"), {"y": "y", "z": "z"}, tensors, {})
    data = [{"x": np.full((2, 4), i, np.float32), "table": np.zeros((600, 4), np.float32)} for i in range(20)]
    dataset = Dataset(data, graph)
    list(dataset)  # the first pass, which keeps the head
    rest = in_sequence._some(dataset)
    assert rest is not None
    seen = [int(batch["x"][0, 0]) for batch in in_sequence._batches(rest)]
    assert sorted([*seen, *dataset.head_numbers]) == list(range(20))


def test_data_in_another_order_each_time_is_said() -> None:
    class Shuffled:
        def __init__(self) -> None:
            self.count = 0

        def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
            self.count += 1
            order = np.random.default_rng(self.count).permutation(4)
            return iter([batches(4)[place] for place in order])

    notes = compress(Shuffled(), method="channel-pruning").report.notes
    assert any("another order each time" in note for note in notes)


def test_a_correction_is_a_ridge_regression_with_a_bias() -> None:
    """Of two groups, against the normal equations of all rows; the least ridge is right where noise is none."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2, 4)) + 3
    truth, shift = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3))
    left = np.einsum("rgc,goc->rgo", x, truth) + shift
    found = corrected(x.astype(np.float32), left, np.arange(300) % 2 == 0)
    assert found is not None
    np.testing.assert_allclose(found.weight, truth, rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(found.bias, shift, atol=2e-2)
    assert found.gain > 0.99


def test_chance_is_not_learned() -> None:
    """Of as many columns as rows noise would be fitted; what one half teaches does not hold on the other."""
    rng = np.random.default_rng(0)
    x, left = rng.normal(size=(60, 1, 30)).astype(np.float32), rng.normal(size=(60, 1, 2))
    assert corrected(x, left, np.arange(60) % 2 == 0) is None
    assert corrected(x, 0 * left, np.arange(60) % 2 == 0) is None
    assert corrected(x, left, np.ones(60, np.bool_)) is None


@pytest.mark.parametrize("value", [1 / 3, 7.3e4, 1e-30])
def test_inputs_that_never_change_teach_the_bias_alone(value: float) -> None:
    """Their variance is what rounding leaves: less than nothing, or too little to be divided by."""
    left = np.random.default_rng(0).normal(1, 0.01, size=(301, 1, 2))
    found = corrected(np.full((301, 1, 6), value, np.float32), left, np.arange(301) % 2 == 0)
    assert found is not None
    np.testing.assert_allclose(found.bias[0], left.mean(axis=(0, 1)), rtol=1e-3)
    np.testing.assert_allclose(found.weight * value, 0, atol=1e-3)


def test_without_a_bias_no_mean_is_taken_up() -> None:
    x = np.full((40, 1, 1), 2, np.float32) * np.linspace(0.5, 1.5, 40, dtype=np.float32)[:, None, None]
    found = corrected(x, 3.0 * x, np.arange(40) % 2 == 0, has_bias=False)
    assert found is not None
    assert found.bias == pytest.approx(0)
    assert found.weight == pytest.approx(3, rel=1e-2)
