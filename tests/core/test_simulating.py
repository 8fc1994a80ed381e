"""Quantized copies for measuring means: weights on their grids, activations cut off where calibration cuts them."""

from __future__ import annotations

import numpy as np
from numpy_backend import checked
from sketch import Sketch
from technique_networks import chain, opened

from isobit.calibration import MeanSquareError, MinMaxRange, Percentile
from isobit.canonical import canonicalize
from isobit.data import Dataset
from isobit.graph import Tensor, Weight
from isobit.placement import QuantConfig, place
from isobit.plugins import registry
from isobit.statistics import Request
from isobit.targets import parse_target
from isobit.techniques.context import Requests, TechniqueContext
from isobit.testing.collecting import Collect


def context(model, plan, data, calibrator) -> TechniqueContext:
    """A context that has observed the ranges."""
    observed = TechniqueContext(model, plan, data, calibrator=calibrator)
    observed.observe(Requests(ranges=True))
    return observed


def seen(model, batch, *tensors: str) -> list[np.ndarray]:
    collected = {name: Collect() for name in tensors}
    model.observe([batch], [Request(Tensor(name), observer) for name, observer in collected.items()])
    return [observer.values for observer in collected.values()]


def test_activations_are_clipped_and_not_rounded() -> None:
    network = chain(0, spread=0)
    model, batch = opened(network), network.batch(16)
    plan, data = place(model.graph, registry().target("default"), QuantConfig("int4")), Dataset([batch], model.graph)
    real = context(model, plan, data, Percentile(95)).quantized_copy().encodings()
    copy = context(model, plan, data, Percentile(95)).weights_quantized_copy()
    assert set(copy.encodings()) == {Weight(f"{name}.weight") for name in ("conv0", "conv1", "conv2", "fc")}
    before, behind, after = seen(copy, batch, "act0", "act0.0", "conv1")
    low, high = (float(getattr(real["act0"], end)) for end in ("minimum", "maximum"))
    assert before.max() > high + 0.1
    np.testing.assert_array_equal(behind, np.clip(before, np.float32(low), np.float32(high)))
    weight = real["conv1.weight"].fake_quantize(network.weights["conv1.weight"])
    padded = np.pad(behind, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    expected = np.einsum("ncyxij,ocij->noyx", windows, weight) + network.weights["conv1.bias"].reshape(-1, 1, 1)
    np.testing.assert_allclose(after, expected, atol=1e-5)


def test_what_cuts_nothing_off_adds_nothing() -> None:
    network = chain(1, spread=0)
    model, batch = opened(network), network.batch(4)
    plan, data = place(model.graph, registry().target("default"), QuantConfig("int8")), Dataset([batch], model.graph)
    assert len(context(model, plan, data, MinMaxRange()).weights_quantized_copy().graph.nodes) == len(model.graph.nodes)


def test_channels_are_clipped_each_for_itself() -> None:
    text = registry().target("default").text
    head = "[activations]\n"
    target = parse_target(text.replace(head, f'{head}granularities = ["per-tensor", "per-channel"]\n'), "test.toml")
    s = Sketch(0)
    y = s.node("Conv", s.input("x", "N", 3, 6, 6), s.random("w", 4, 3, 1, 1), s.random("b", 4), name="conv",
               shape=("N", 4, 6, 6), group=1)  # fmt: skip
    model = checked(canonicalize(s.graph(y)), s.values)
    x = np.random.default_rng(0).standard_normal((8, 3, 6, 6)) ** 3 * [[[1]], [[10]], [[99]]]
    x = x.astype(np.float32)  # with long tails
    plan = place(model.graph, target, QuantConfig(None, "uint4 per-channel"))
    data = Dataset([{"x": x}], model.graph)
    encoding = context(model, plan, data, MeanSquareError()).quantized_copy().encodings()["x"]
    assert encoding.axis == 1
    (clipped,) = seen(context(model, plan, data, MeanSquareError()).weights_quantized_copy(), {"x": x}, "x.1")
    low, high = encoding.minimum.reshape(-1, 1, 1), encoding.maximum.reshape(-1, 1, 1)
    np.testing.assert_array_equal(clipped, np.clip(x, low, high))
    assert np.any(clipped != x)
