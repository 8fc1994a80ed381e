"""What BalanceChannels decides by: expected errors against rounded layers, and exponents against all there are."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from technique_networks import opened, simulator

from isobit.data import Dataset
from isobit.encodings.quant_spec import QuantSpec
from isobit.encodings.ranges import encode_range, encode_weight
from isobit.graph import Tensor
from isobit.graph.sites import Weight
from isobit.placement.plan import Placement
from isobit.statistics import ChannelMoments, Request
from isobit.techniques.context import TechniqueContext
from isobit.techniques.input_scaling import expected_error
from isobit.techniques.input_scaling.places import find_places, moment_requests
from isobit.techniques.input_scaling.powers_of_two import MOST_OCTAVES, _distinct, best_exponents
from isobit.techniques.input_scaling.region_error import RegionError
from isobit.techniques.input_scaling.rounding_noise import rounding_noise
from isobit.techniques.layers.weighted_layer import by_input
from isobit.testing.collecting import Collect
from isobit.testing.networks import Network, NetworkBuilder


def layer_behind_swish(group: int, out: int, kernel: int = 3) -> Network:
    b = NetworkBuilder("layer", group)
    h = b.op("Swish", "act", b.conv("first", b.input("x", 4, 8, 8), 8, 1))
    b.output("y", b.conv("layer", h, out, kernel, group=group, pad=0))
    network = b.build()
    sizes = np.exp2(np.random.default_rng(group).uniform(-3, 3, 8)).astype(np.float32)
    weights = dict(network.weights)
    for name in ("first.weight", "first.bias"):
        weights[name] = weights[name] * sizes.reshape(-1, *(1,) * (weights[name].ndim - 1))
    weights["layer.weight"] = weights["layer.weight"] / by_input(weights["layer.weight"], group, sizes)
    return Network(network.name, network.graph, weights)


@pytest.mark.parametrize(("group", "out", "kernel"), [(8, 8, 3), (8, 16, 3), (1, 48, 3), (1, 64, 1), (2, 32, 3)])
def test_the_expected_error_is_what_rounding_costs(monkeypatch, group: int, out: int, kernel: int) -> None:
    """Against outputs of rounded inputs and weights, as they are and enlarged, for data that reaches no farther."""
    monkeypatch.setattr(expected_error, "_beyond", lambda margin, reach, count: 0 * margin)
    network = layer_behind_swish(group, out, kernel)
    sim, data = simulator(network, "onnxruntime-cpu"), network.batch(256)
    context = TechniqueContext(sim.backend_model, sim.plan, Dataset([data], sim.graph), replan=sim.simulation.plan_for)
    place = next(place for place in find_places(context)[0] if place.region.start == "act")
    requests = moment_requests([place])
    seen = context.observe(requests).float
    moments = {str(request.site): item for request, item in zip(requests.float, seen, strict=True)}
    error = RegionError.behind(sim.backend_model, sim.plan, place.region, moments)
    collected = Collect()
    opened(network).observe([data], [Request(Tensor("act"), collected)])
    values = collected.values
    for seed in range(3):
        exponents = np.random.default_rng(seed).integers(0, 4, 8) * (seed > 0)
        factors = np.exp2(-exponents.astype(np.float32))
        enlarged = values / factors.reshape(1, -1, 1, 1)
        spec = sim.plan.placements[Tensor("act")].spec
        grid = encode_range(enlarged.min(), enlarged.max(), spec)
        weight = network.weights["layer.weight"]
        scaled = weight * by_input(weight, group, factors)
        rounded = encode_weight(scaled, sim.plan.placements[Weight("layer.weight")].spec).fake_quantize(scaled)
        exact, coarse = (
            convolved(inputs, taps, group)
            for inputs, taps in ((enlarged, scaled), (grid.fake_quantize(enlarged), rounded))
        )
        expected = np.square(coarse - exact).mean(axis=(0, 2, 3)).sum()
        (computed,) = error.after(exponents[None])
        np.testing.assert_allclose(computed, expected, rtol=0.25)
    exact = convolved(values, network.weights["layer.weight"], group)
    np.testing.assert_allclose(error.signal, exact.var(axis=(0, 2, 3)).sum(), rtol=0.7)


def convolved(values: np.ndarray, weight: np.ndarray, group: int) -> np.ndarray:
    """A convolution without padding, channel by channel."""
    size = weight.shape[-1]
    windows = np.lib.stride_tricks.sliding_window_view(values.astype(np.float64), (size, size), axis=(2, 3))
    per_group = np.split(windows, group, axis=1), np.split(weight.astype(np.float64), group, axis=0)
    return np.concatenate(
        [np.einsum("nchwij,ocij->nohw", w, t, optimize=True) for w, t in zip(*per_group, strict=True)], axis=1
    )


@pytest.mark.parametrize(
    "text", ["int8 per-channel", "int8 per-tensor", "int4 per-channel", "int4 block=4", "float8e4m3"]
)
@pytest.mark.parametrize(
    ("group", "shape"), [(1, (6, 8, 3, 3)), (4, (4, 1, 3, 3)), (4, (8, 1, 1, 1)), (2, (6, 4, 1, 3))]
)
def test_noise_of_weights_of_several_taps_and_groups(text: str, group: int, shape: tuple[int, ...]) -> None:
    spec = QuantSpec.parse(text)
    if "block" in text and shape[1] % 4:
        return
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(shape).astype(np.float32)
    weight[1] = 0
    factors = np.exp2(rng.integers(-3, 1, (3, group * shape[1]))).astype(np.float32)
    placement = Placement(Weight("w"), spec, "weight", channel_axis=0, block_axis=1)
    for row, found in zip(factors, rounding_noise(weight, factors, placement, group), strict=True):
        scaled = weight * by_input(weight, group, row)
        encoding = encode_weight(scaled, spec, channel_axis=0, block_axis=1)
        if spec.is_integer:
            variance = np.square(np.broadcast_to(encoding.broadcast(shape)[0], shape)) / 12
            if not text.endswith("tensor"):
                variance = np.where(np.abs(scaled).reshape(shape[0], -1).max(1).reshape(-1, 1, 1, 1) > 0, variance, 0)
        else:
            variance = np.square(encoding.fake_quantize(scaled) - scaled)
        expected = np.zeros(group * shape[1])
        for output, taps in enumerate(variance.reshape(shape[0], shape[1], -1).sum(axis=2)):
            start = output // (shape[0] // group) * shape[1]
            expected[start : start + shape[1]] += taps
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-12)


@pytest.mark.parametrize("sides", ["positive", "negative", "both", "like HardSwish"])
def test_exponents_are_as_good_as_the_best_of_all(sides: str) -> None:
    for seed in range(6):
        rng = np.random.default_rng(seed)
        high, low, energy = np.exp2(rng.uniform(-4, 2, 4)), -np.exp2(rng.uniform(-4, 2, 4)), rng.uniform(0.1, 4, 4)
        if sides == "positive":
            low = np.zeros(4)
        elif sides == "negative":
            high = np.zeros(4)
        elif sides == "like HardSwish":
            low = np.full(4, -0.375)

        def error(rows, low=low, high=high, energy=energy):
            width = (high * np.exp2(rows)).max(axis=1) - (low * np.exp2(rows)).min(axis=1)
            return (np.square(width[:, None] * np.exp2(-rows.astype(float))) * energy).sum(axis=1)

        exponents, found = best_exponents(low, high, error, error, np.full(4, MOST_OCTAVES))
        everything = np.array([row for row in product(range(8), repeat=4) if min(row) == 0])
        assert exponents.min() == 0
        assert found == error(exponents[None])[0]
        assert found <= 1.12 * error(everything).min()


def test_exponents_of_silent_channels_and_of_those_without_room() -> None:
    high, low = np.array([4.0, 0.0, 0.01, 1e-30, 0.5]), np.zeros(5)

    def error(rows):
        return (np.square((high * np.exp2(rows)).max(axis=1)[:, None] * np.exp2(-rows.astype(float)))).sum(axis=1)

    exponents, _ = best_exponents(low, high, error, error, np.array([12, 12, 2, 12, 12]))
    assert exponents[0] == exponents[1] == 0
    assert exponents[2] <= 2
    assert exponents.max() <= MOST_OCTAVES
    nothing, _ = best_exponents(
        np.zeros(3), np.zeros(3), lambda r: np.zeros(len(r)), lambda r: np.zeros(len(r)), np.full(3, 12)
    )
    np.testing.assert_array_equal(nothing, 0)


@pytest.mark.parametrize("channels", [1, 3, 40])
def test_rows_of_exponents_are_told_apart_in_order(channels: int) -> None:
    rows = np.random.default_rng(channels).integers(0, 2 if channels < 40 else MOST_OCTAVES + 1, (60, channels))
    rows = np.concatenate([rows, rows[::3], rows[:1] + 1])
    np.testing.assert_array_equal(_distinct(rows), np.unique(rows, axis=0))


def test_moments_by_channel_do_not_depend_on_the_axis() -> None:
    batches = [np.random.default_rng(seed).normal(1, 2, (3, 5, 4, 6)).astype(np.float32) for seed in range(3)]
    for axis in range(1, 4):
        by_axis, last = ChannelMoments(), ChannelMoments()
        for batch in batches:
            by_axis.update(batch, axis)
            last.update(np.moveaxis(batch, axis, -1))
        assert by_axis.count == last.count
        for name in ("minimum", "maximum", "mean"):
            np.testing.assert_array_equal(getattr(by_axis, name), getattr(last, name))
