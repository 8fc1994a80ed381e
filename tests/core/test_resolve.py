"""Plans, statistics and weights become encodings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest
from registries import own_registry
from sketch import Sketch

from isobit.calibration import MeanSquareError, MinMaxRange, Percentile
from isobit.calibration.needed_statistics import observed_sites
from isobit.calibration.resolve import Resolved, resolve
from isobit.canonical import canonicalize
from isobit.encodings import QuantSpec, encode_range, encode_weight
from isobit.errors import DataError, EncodingError
from isobit.graph import Graph, Input, Tensor, Weight
from isobit.placement import QuantConfig, place
from isobit.statistics import Histogram, Statistics

TARGET = own_registry().target("default")
DEMANDING = replace(TARGET, required_ranges={"Sigmoid": (0.0, 1.0)})
UINT8 = QuantSpec.parse("uint8")


def network(bias: np.ndarray | None = None) -> tuple[Graph, dict[str, np.ndarray]]:
    """Two layers side by side, concatenated; a sigmoid; one bias."""
    sketch = Sketch()
    x = sketch.input("x", "N", 4)
    sketch.weight("b", bias if bias is not None else [0.5, -1.0, 0.0])
    a = sketch.node("Linear", x, sketch.random("a.w", 3, 4), "b", name="a", shape=("N", 3))
    b = sketch.node("Linear", x, sketch.random("b.w", 3, 4), name="b_", shape=("N", 3))
    joined = sketch.node("Concat", a, b, name="cat", shape=("N", 6), axis=1)
    y = sketch.node("Linear", joined, sketch.random("c.w", 2, 6), name="c", shape=("N", 2))
    graph = canonicalize(sketch.graph(sketch.node("Sigmoid", y, name="sigmoid", shape=("N", 2))))
    return graph, sketch.values


VALUES = {
    "x": np.linspace(-1, 1, 99),
    "a": np.linspace(-3, 1, 99),
    "b_": np.linspace(-1, 5, 99),
    "c": np.linspace(0.5, 2, 99),
}


def statistics_of(**values: np.ndarray) -> Statistics:
    histograms = {}
    for name, value in values.items():
        histogram = Histogram()
        histogram.update(np.float32(value).reshape(1, -1))
        histograms[Tensor(name)] = histogram
    return Statistics(histograms)


def resolved(
    config: QuantConfig | None = None,
    bias: np.ndarray | None = None,
    scheme: object = MinMaxRange(),
    seen: Mapping[str, np.ndarray] = MappingProxyType(VALUES),
) -> Resolved:
    graph, values = network(bias)
    return resolve(
        graph, place(graph, TARGET, config or QuantConfig()), statistics_of(**seen), scheme, values.__getitem__
    )  # type: ignore[arg-type]


def test_only_what_is_calibrated_is_observed() -> None:
    graph, _ = network()
    assert observed_sites(place(graph, TARGET)) == [Tensor(name) for name in (*VALUES, "sigmoid")]
    assert observed_sites(place(graph, DEMANDING)) == [Tensor(name) for name in VALUES]
    plan = place(graph, TARGET, QuantConfig(overrides={"c[0]": "int8"}))
    assert Input("c", 0) in plan.placements
    observed = observed_sites(plan)
    assert observed.count(Tensor("c")) == 1  # the tensor and its reader of another format see the same values


def test_every_placement_has_an_encoding_in_the_order_of_the_plan() -> None:
    graph, _ = network()
    assert list(resolved().encodings) == list(place(graph, TARGET).placements)
    assert resolved().notes == ()


def test_activations() -> None:
    encodings = resolved().encodings
    assert encodings["x"] == encode_range(-1, 1, UINT8)
    group = encode_range(-3, 5, UINT8)  # the range of both layers' outputs
    assert encodings["a"] == encodings["b_"] == encodings["cat"] == group
    assert encodings["sigmoid"] == encode_range(0, 1, UINT8, snap=False), "a fixed range is not snapped"
    assert encodings["sigmoid"].scale == np.float32(1 / 255)


@pytest.mark.parametrize(
    ("largest", "target", "expected"),
    [
        (0.02, TARGET, (0.0, 0.02)),
        (0.5, TARGET, (0.0, 0.5)),
        (0.6, TARGET, (0.0, 1.0)),
        (0.02, DEMANDING, (0.0, 1.0)),
        (None, TARGET, (0.0, 1.0)),
    ],
)
def test_a_known_range_gives_way_to_a_much_smaller_one_of_the_data(largest, target, expected) -> None:
    graph, values = network()
    seen = {} if largest is None else {"sigmoid": np.linspace(0, largest, 99)}
    plan = place(graph, target, QuantConfig())
    encodings = resolve(graph, plan, statistics_of(**VALUES, **seen), MinMaxRange(), values.__getitem__).encodings
    assert encodings["sigmoid"].maximum == pytest.approx(expected[1], rel=0.02)
    assert encodings["sigmoid"].minimum == 0


def test_the_scheme_sees_the_whole_group() -> None:
    scheme, seen = Percentile(90), {**VALUES, "b_": 100 * VALUES["b_"]}
    merged = Histogram()
    for name in ("a", "b_"):
        merged.update(np.float32(seen[name]).reshape(1, -1))
    assert resolved(scheme=scheme, seen=seen).encodings["cat"] == encode_range(*scheme.range(merged, UINT8), UINT8)


@pytest.mark.parametrize(("small", "is_heard"), [(0.05, True), (0.6, True), (1e-4, False)])
def test_a_shared_grid_is_for_the_small_part_too(small: float, is_heard: bool) -> None:
    """Against brute force: the noise of each part over its own signal adds up, not the noise of all values."""
    large = np.abs(np.random.default_rng(0).standard_normal(4000)).astype(np.float32) ** 3
    parts = {"a": large, "b_": small * large[::-1]}
    config = QuantConfig(activations="uint4")
    found = resolved(config, scheme=MeanSquareError(), seen={**VALUES, **parts}).encodings["cat"]

    def costs(scale: float) -> list[float]:
        grid = [np.square(np.clip(np.rint(x / scale), 0, 15) * scale - x).sum() for x in parts.values()]
        return [noise / np.square(x).sum() for noise, x in zip(grid, parts.values(), strict=True)]

    scales = large.max() / 15 * np.geomspace(0.002, 1, 400)
    each = np.array([costs(scale) for scale in scales])
    of_parts, of_large = each.sum(1).min(), each[:, 0].min()
    if is_heard:
        assert sum(costs(float(found.scale))) < 1.06 * of_parts
    else:  # no grid that holds the large part has a level for it
        assert costs(float(found.scale))[0] < 1.03 * of_large


def test_resolving_leaves_the_statistics_alone() -> None:
    graph, values = network()
    statistics = statistics_of(**VALUES)
    resolve(graph, place(graph, TARGET), statistics, MinMaxRange(), values.__getitem__)
    assert all(statistics[site] == reducer for site, reducer in statistics_of(**VALUES).items())


def test_weights_depend_on_their_values_alone() -> None:
    _, values = network()
    encodings = resolved().encodings
    assert encodings["a.w"] == encode_weight(values["a.w"], QuantSpec.parse("int8 per-channel"))
    blocks = resolved(QuantConfig(overrides={"c.w": "int4 lpbq=3"})).encodings["c.w"]
    assert blocks == encode_weight(values["c.w"], QuantSpec.parse("int4 lpbq=3"), block_axis=1)


def test_readers_with_formats_of_their_own_encode_the_same_values() -> None:
    sketch = Sketch()
    x = sketch.input("x", "N", 4)
    weight = sketch.random("w", 4, 4)
    y = sketch.node("Linear", x, weight, name="first", shape=("N", 4))
    graph = canonicalize(sketch.graph(sketch.node("Linear", y, weight, name="second", shape=("N", 4))))
    plan = place(graph, TARGET, QuantConfig(exclude=["second"]))
    statistics = statistics_of(x=VALUES["x"], first=VALUES["a"])
    encodings = resolve(graph, plan, statistics, MinMaxRange(), sketch.values.__getitem__).encodings
    assert encodings[Input("first", 1)] == encode_weight(sketch.values["w"], QuantSpec.parse("int8 per-channel"))
    assert Weight("w") not in encodings


def test_a_bias_has_the_scale_of_its_accumulator() -> None:
    encodings = resolved().encodings
    bias = encodings["b"]
    np.testing.assert_array_equal(bias.scale, encodings["x"].scale * encodings["a.w"].scale)
    assert (str(bias.spec), bias.axis) == ("int32 symmetric per-channel", 0)
    whole = resolved(QuantConfig(weights="int8 per-tensor")).encodings["b"]
    assert (whole.scale.shape, whole.axis) == ((), None)


@pytest.mark.parametrize("weights", ["int8 per-channel", "int8 per-tensor", "uint8 per-channel"])
def test_a_bias_that_does_not_fit_raises_its_channels_weight_scale(weights: str) -> None:
    big = np.float32([0.5, 3e6, -2e6])
    with_big_bias = resolved(QuantConfig(weights=weights), big)
    with_small_bias = resolved(QuantConfig(weights=weights))
    source, weight, bias = (with_big_bias.encodings[name] for name in ("x", "a.w", "b"))
    steps = np.abs(big.astype(np.float64)) / (source.scale.astype(np.float64) * weight.scale.astype(np.float64))
    assert np.all(steps <= 2**30)
    error = np.abs(bias.fake_quantize(big).astype(np.float64) - big)
    assert np.all(error <= 0.5 * bias.scale + 2.0**-23 * np.abs(big)), "nothing saturates"
    count = 1 if "tensor" in weights else 2
    assert with_big_bias.notes == (
        f"weight 'a.w': the scale of {count} channel(s) was raised so that the int32 bias fits",
    )
    if count == 2:
        raised = weight.scale > with_small_bias.encodings["a.w"].scale
        assert raised.tolist() == [False, True, True]
        exact = np.abs(big[1:].astype(np.float64)) / (2.0**30 * float(source.scale))
        np.testing.assert_allclose(weight.scale[1:], exact, rtol=1e-6)
        assert weight.zero_point[0] == with_small_bias.encodings["a.w"].zero_point[0]


def test_float_formats_need_no_statistics() -> None:
    graph, values = network()
    plan = place(graph, TARGET, QuantConfig(activations="bfloat16"))
    encodings = resolve(graph, plan, Statistics(), MinMaxRange(), values.__getitem__).encodings
    assert encodings["x"].scale == 1


def test_unseen_tensors_are_named() -> None:
    graph, values = network()
    without_c = {name: value for name, value in VALUES.items() if name != "c"}
    with pytest.raises(DataError, match="no values of 'c' were seen"):
        resolve(graph, place(graph, TARGET), statistics_of(**without_c), MinMaxRange(), values.__getitem__)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (QuantConfig(activations="uint8 symmetric"), "tensor 'x': uint8 symmetric per-tensor has no negative levels"),
        (QuantConfig(overrides={"c.w": "int4 block=4"}), "weight 'c.w': block size 4 does not divide axis 1"),
        (
            QuantConfig(overrides={"a.w": "uint8 symmetric"}),
            "weight 'a.w': uint8 symmetric per-channel has no negative levels",
        ),
    ],
)
def test_what_cannot_be_encoded_is_named(config: QuantConfig, message: str) -> None:
    with pytest.raises(EncodingError, match=re.escape(message)):
        resolved(config)


def test_what_is_frozen_is_kept_and_asks_for_no_statistics() -> None:
    graph, values = network()
    plan = place(graph, TARGET)
    unseen = {name: value for name, value in VALUES.items() if name not in ("a", "b_")}
    frozen = {
        Tensor("a"): encode_range(-4, 9, UINT8),
        Weight("c.w"): encode_weight(2 * values["c.w"], QuantSpec.parse("int8 per-channel")),
    }
    encodings = resolve(
        graph, plan, statistics_of(**unseen), MinMaxRange(), values.__getitem__, frozen=frozen
    ).encodings
    assert encodings["a"] == encodings["b_"] == encodings["cat"] == frozen[Tensor("a")], "a group has one encoding"
    assert encodings[Weight("c.w")] == frozen[Weight("c.w")]


def test_the_scale_of_a_frozen_weight_is_not_raised_for_a_bias() -> None:
    frozen = {Weight("a.w"): resolved().encodings[Weight("a.w")]}
    graph, values = network(np.float32([1e9, 0, 0]))
    resolution = resolve(
        graph, place(graph, TARGET), statistics_of(**VALUES), MinMaxRange(), values.__getitem__, frozen=frozen
    )
    assert resolution.encodings[Weight("a.w")] == frozen[Weight("a.w")]
    assert any("frozen" in note for note in resolution.notes)
