"""SmoothQuant and AWQ: the function stays, the error falls, factors go where they can be carried."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from technique_networks import assert_same_function, opened, simulator

from isobit.data import Dataset
from isobit.errors import DataError, FormatError
from isobit.graph import Tensor
from isobit.quantsim.checks.quality import output_sqnr
from isobit.statistics import ChannelMoments, Request
from isobit.techniques import Awq, SmoothQuant
from isobit.techniques.context import TechniqueContext
from isobit.techniques.input_scaling.expected_error import ExpectedError, _beyond, in_steps_of_range, input_requests
from isobit.techniques.input_scaling.rescaling import Rescaling, find_inputs
from isobit.testing.collecting import Collect
from isobit.testing.networks import Network, NetworkBuilder
from isobit.testing.networks.convolutional import conv_net
from isobit.testing.networks.fully_connected import shared_weights

TARGET = "onnxruntime-cpu-transformer"


def encoder(seed: int = 0, *, residual: bool = False, before: str = "norm", outliers: float = 60.0) -> Network:
    """Two linear readers of one tensor with a few large channels, then another behind ReLU."""
    b = NetworkBuilder("encoder", seed)
    x = b.input("x", 5, 16)
    if before == "norm":
        h = b.layer_norm("norm", x)
    elif before == "linear":
        h = b.op("Relu", "relu0", b.linear("norm", x, 16))
    else:
        h = b.op("Sigmoid", "norm", x)
    joined = b.op("Add", "joined", b.linear("left", h, 24), b.linear("right", h, 24))
    y = b.linear("down", b.op("Relu", "relu", b.linear("up", joined, 24)), 16)
    b.output("y", b.op("Add", "sum", y, h) if residual else y)
    network = b.build()
    weights = {name: np.array(value) for name, value in network.weights.items()}
    if before != "sigmoid":
        weights["norm.weight"][[2, 9]] *= outliers
        weights["norm.bias"][[2, 9]] *= outliers
    for name in ("left.weight", "right.weight"):
        weights[name][:, [2, 9]] /= outliers
    return Network("encoder", network.graph, weights)


def sqnr(
    network: Network,
    *techniques,
    weights: str = "int8",
    activations: str = "uint8",
    target: str = TARGET,
    samples: int = 32,
):
    sim = simulator(network, target, weights=weights, activations=activations)
    data = network.batch(samples)
    new = network.batch(128, seed=1)  # what the calibration has not seen
    expected = sim.backend_model.run(new)
    reports = sim.apply(*techniques, data=data)
    sim.calibrate(data)
    return output_sqnr([expected], [sim.run(new)]), reports


@settings(max_examples=12)
@given(
    seed=st.integers(0, 500),
    residual=st.booleans(),
    before=st.sampled_from(["norm", "linear", "sigmoid"]),
    technique=st.sampled_from([SmoothQuant(0.5), SmoothQuant(), Awq()]),
)
def test_the_function_stays(seed, residual, before, technique) -> None:
    network = encoder(seed, residual=residual, before=before)
    sim, data = simulator(network, TARGET), network.batch(8, seed)
    expected = sim.backend_model.run(data)
    sim.apply(technique, data=data)
    assert_same_function(sim.backend_model.run(data), expected)


def test_smoothing_cures_outliers() -> None:
    network = encoder(1)
    naive, _ = sqnr(network)
    searched, (report,) = sqnr(network, SmoothQuant())
    worst = min(sqnr(network, SmoothQuant(alpha))[0] for alpha in (0.0, 0.25, 0.5, 0.75, 1.0))
    assert searched > naive + 8
    assert searched > worst
    assert any("left, right" in text and "divided in norm" in text for text in report.changed)


def test_a_shift_helps_channels_that_lie_on_one_side() -> None:
    """Carried by the norm, by a layer, or by a Mul and an Add; never by a layer behind an activation."""
    for residual, before, where in ((False, "norm", "in norm"), (True, "norm", "in a Mul and an Add")):
        network = encoder(4, residual=residual, before=before)
        sides = np.where(np.arange(16) % 2, 4, -4).astype(np.float32)
        weights = {**network.weights, "norm.bias": sides * network.weights["norm.weight"]}
        network = Network("shifted", network.graph, weights)
        shifted, (report,) = sqnr(network, SmoothQuant(), samples=2048)
        plain, (other,) = sqnr(network, SmoothQuant(shift=False), samples=2048)
        assert shifted > plain + 1
        (text,) = (text for text in report.changed if text.startswith("left, right"))
        assert "subtracted" in text
        assert text.endswith(f"divided {where}")
        assert not any("subtracted" in text for text in other.changed)
    _, (report,) = sqnr(encoder(4, before="linear"), SmoothQuant())
    assert not any("subtracted" in text for text in report.changed if text.endswith("divided in norm"))


def test_what_new_data_exceeds() -> None:
    """Against exponential values drawn anew."""
    count, tail = 500, 0.7
    values = np.random.default_rng(0).exponential(tail, 4_000_000)
    reach = tail * np.log(count + 1)
    for margin in (0.0, 0.5):
        expected = np.square(np.maximum(values - reach - margin, 0)).mean()
        computed = _beyond(np.array([margin]), np.array([reach]), count)
        np.testing.assert_allclose(computed, expected, rtol=0.1)


def test_the_expected_error_is_what_rounding_costs() -> None:
    """Against the layers' outputs computed from rounded inputs and weights."""
    network = encoder(7, outliers=8.0)
    sim, data = simulator(network, TARGET), network.batch(256)
    item = next(i for i in find_inputs(sim.graph, sim.plan)[0] if i.name == "left, right")
    context = TechniqueContext(sim.backend_model, sim.plan, Dataset([data], sim.graph))
    (moments,) = context.observe(input_requests([item])).float
    error = ExpectedError.of(sim.backend_model, sim.plan, item, moments)
    collected = Collect()
    sim.backend_model.observe([data], [Request(Tensor(item.tensor), collected)])
    rows = collected.values.reshape(-1, 16).astype(np.float64)
    shift, factors = moments.middle, np.sqrt(moments.largest())
    changed = (rows - shift) / factors
    low, high = min(changed.min(), 0), max(changed.max(), 0)
    scale = (high - low) / 255
    rounded = np.rint(changed / scale) * scale
    expected = 0.0
    for name in ("left.weight", "right.weight"):
        weight = network.weights[name] * factors
        steps = np.abs(weight).max(axis=1, keepdims=True) / 127
        coarse = np.rint(weight / steps) * steps
        expected += np.square(rounded @ coarse.T - changed @ weight.T).sum() / len(rows)
    (computed,) = error.after([Rescaling(factors, shift)])
    np.testing.assert_allclose(computed, expected, rtol=0.35)  # the clipping of new data is in `computed` alone


def test_the_carrier_or_a_mul() -> None:
    for residual, before, where in (
        (False, "norm", "norm"),
        (False, "linear", "norm"),
        (True, "norm", "a Mul"),
        (False, "sigmoid", "a Mul"),
    ):
        sim = simulator(encoder(2, residual=residual, before=before), TARGET)
        (report,) = sim.apply(SmoothQuant(0.5), data=encoder(2).batch(8))
        (text,) = (text for text in report.changed if text.startswith("left, right"))
        assert text.endswith(f"divided in {where}")
        muls = [node for node in sim.graph.nodes if node.op == "Mul"]
        assert len([m for m in muls if m.name.startswith(("left", "right"))]) == (2 if where == "a Mul" else 0)


def test_a_target_that_rounds_before_the_mul() -> None:
    network = encoder(3, residual=True)
    sim = simulator(network, "default")
    (report,) = sim.apply(SmoothQuant(), data=network.batch(8))
    assert "rounds it before" in report.left["left, right"]


def test_the_formula_of_the_paper() -> None:
    network = encoder(4)
    sim, data = simulator(network, TARGET), network.batch(16)
    before = {name: np.array(sim.backend_model.weight(name)) for name in sim.graph.weights}
    sim.apply(SmoothQuant(0.5), data=data)
    collect = Collect()
    opened(network).observe([data], [Request(Tensor("norm"), collect)])
    largest = np.abs(collect.values).max(axis=(0, 1))
    heaviest = np.maximum(*(np.abs(before[f"{n}.weight"]).max(axis=0) for n in ("left", "right")))
    expected = np.sqrt(largest / heaviest)
    factors = sim.backend_model.weight("left.weight")[0] / before["left.weight"][0]
    mantissa, _ = np.frexp(factors)
    np.testing.assert_allclose(mantissa * 64, np.rint(mantissa * 64), rtol=1e-6, err_msg="factors have few bits")
    scale = np.exp(np.log(factors / expected).mean())
    np.testing.assert_allclose(factors, expected * scale, rtol=1 / 50)
    np.testing.assert_allclose(sim.backend_model.weight("norm.weight") * factors, before["norm.weight"], rtol=1e-5)


@pytest.mark.parametrize("weights", ["int4 per-channel", "int4 block=8", "int3"])
def test_awq_lowers_the_error_of_few_bits(weights: str) -> None:
    target = "default"
    naive, better = [], []
    for seed in range(4):
        network = encoder(seed, outliers=4.0)
        naive.append(sqnr(network, weights=weights, activations="uint16", target=target)[0])
        ratio, (report,) = sqnr(network, Awq(), weights=weights, activations="uint16", target=target)
        better.append(ratio)
        assert report.changed
    assert np.mean(better) > np.mean(naive) + 0.3


def test_what_they_need_and_leave() -> None:
    network = shared_weights()
    for technique in (SmoothQuant(), Awq()):
        with pytest.raises(DataError, match=f"{type(technique).__name__} needs data"):
            simulator(encoder(0), TARGET).apply(technique)
        sim = simulator(network)
        (report,) = sim.apply(technique, data=network.batch(4))
        assert "shared with" in report.left["fc1"]
    sim = simulator(conv_net(), exclude=["Linear"])
    (report,) = sim.apply(SmoothQuant(), data=conv_net().batch(2))
    assert report.left == {"model": "it has no quantized linear layer"}
    for wrong in (-0.1, 1.5):
        with pytest.raises(FormatError):
            SmoothQuant(wrong)


@pytest.mark.parametrize("technique", [SmoothQuant(), Awq()])
def test_silent_channels_and_one_sample(technique) -> None:
    """A channel that never fires, a column of zeros, an all-zero weight."""
    network = encoder(5)
    weights = {name: np.array(value) for name, value in network.weights.items()}
    weights["norm.weight"][0] = weights["norm.bias"][0] = 0
    weights["left.weight"][:, 1] = weights["right.weight"][:, 1] = 0
    weights["down.weight"][:] = 0
    network = Network("silent", network.graph, weights)
    sim, data = simulator(network, TARGET, weights="int4"), network.batch(1)
    expected = sim.backend_model.run(data)
    sim.apply(technique, data=data)
    assert all(np.all(np.isfinite(sim.backend_model.weight(name))) for name in sim.graph.weights)
    np.testing.assert_allclose(sim.backend_model.run(data)["y"], expected["y"], atol=1e-4)


def test_noise_does_not_move_a_shift_and_steps_make_the_range_little_wider():
    rng = np.random.default_rng(3)
    rows = (rng.normal(size=(200, 64)) * rng.uniform(0.01, 50, 64) + rng.normal(size=64)).astype(np.float32)
    rows[:, 5] = 0.3  # a constant stays one
    noisy = rows + (1e-7 * np.ptp(rows, axis=0) * rng.normal(size=rows.shape)).astype(np.float32)
    moments, noisy_moments = ChannelMoments(), ChannelMoments()
    moments.update(rows)
    noisy_moments.update(noisy)
    assert not np.array_equal(moments.middle, noisy_moments.middle)
    np.testing.assert_array_equal(
        in_steps_of_range(moments.middle, moments), in_steps_of_range(noisy_moments.middle, noisy_moments)
    )
    np.testing.assert_array_equal(
        in_steps_of_range(moments.mean, moments), in_steps_of_range(noisy_moments.mean, noisy_moments)
    )
    np.testing.assert_array_less(
        moments.largest(in_steps_of_range(moments.middle, moments)), moments.largest(moments.middle) * 1.016 + 1e-9
    )
    assert in_steps_of_range(moments.middle, moments)[5] == moments.middle[5]


def test_what_is_seen_of_an_input_is_what_numpy_says_of_all_rows():
    rng = np.random.default_rng(8)
    batches = [rng.normal(3, 2, (n, 5, 37)).astype(np.float32) for n in (4, 0, 1, 9)]
    moments = ChannelMoments()
    assert not moments.is_finite
    for batch in batches:
        moments.update(batch)
    rows = np.concatenate(batches).reshape(-1, 37).astype(np.float64)
    assert moments.is_finite
    assert moments.count == len(rows)
    np.testing.assert_array_equal(moments.minimum, rows.min(axis=0))
    np.testing.assert_array_equal(moments.maximum, rows.max(axis=0))
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.mean_square(1.5), np.square(rows - 1.5).mean(axis=0), rtol=1e-10)
    for not_finite in (np.nan, np.inf):
        broken = ChannelMoments()
        broken.update(np.where(np.arange(37) == 9, not_finite, batches[0]).astype(np.float32))
        assert not broken.is_finite
