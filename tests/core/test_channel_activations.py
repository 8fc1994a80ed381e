"""Activations with one scale a channel, where a target has them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy_backend import checked
from sketch import Sketch

from isobit.calibration import MeanSquareError, MinMaxRange, Percentile
from isobit.calibration.channel_error import smallest_channel_errors
from isobit.canonical import canonicalize
from isobit.encodings import QuantSpec, encode_range
from isobit.errors import DataError, FormatError, TargetError
from isobit.graph import Tensor, Weight
from isobit.placement import QuantConfig
from isobit.plugins import registry
from isobit.quantsim import QuantSim
from isobit.statistics import ChannelRange, Statistics
from isobit.targets import Target, parse_target

TEXT = registry().target("default").text
HEAD = "[activations]\n"
DATA = np.random.default_rng(3).standard_normal((24, 3, 6, 6)).astype(np.float32)


def target(granularities: str = '["per-tensor", "per-channel"]') -> Target:
    return parse_target(TEXT.replace(HEAD, f"{HEAD}granularities = {granularities}\n"), "test.toml")


def sim(activations: str = "uint8 per-channel") -> QuantSim:
    sketch = Sketch(0)
    x = sketch.input("x", "N", 3, 6, 6)
    weight, bias = sketch.random("conv.w", 4, 3, 3, 3), sketch.random("conv.b", 4)
    y = sketch.node("Conv", x, weight, bias, name="conv", shape=("N", 4, 4, 4), group=1)
    y = sketch.node("MaxPool", y, name="pool", shape=("N", 4, 2, 2), kernel_shape=(2, 2), strides=(2, 2),
                    dilations=(1, 1), pads=(0, 0, 0, 0), ceil_mode=0)  # fmt: skip
    model = checked(canonicalize(sketch.graph(y)), sketch.values)
    return QuantSim.of_backend_model(model, target(), QuantConfig(None, activations))


def test_each_channel_has_its_own_range() -> None:
    simulator = sim()
    simulator.calibrate([DATA[i : i + 4] * np.float32([[[[1]], [[10]], [[100]]]]) for i in range(0, 24, 4)])
    encoding = simulator.encodings["x"]
    assert encoding.axis == 1
    scaled = DATA * np.float32([[[[1]], [[10]], [[100]]]])
    low, high = scaled.min(axis=(0, 2, 3)), scaled.max(axis=(0, 2, 3))
    assert encoding == encode_range(low, high, QuantSpec.parse("uint8 per-channel"), axis=1)
    assert simulator.encodings["conv"].axis is None, "one encoding for a tensor and its pooled values"
    assert Weight("conv.b") not in simulator.plan.placements, "no one scale for its products"
    error = np.abs(simulator.run(scaled)["out0"] - simulator.run_float(scaled)["out0"])
    assert 0 < error.max() < 0.05 * np.abs(simulator.run_float(scaled)["out0"]).max()


def test_schemes_without_channels_say_so() -> None:
    simulator = sim()
    with pytest.raises(FormatError, match="'x' has one scale a channel, which method 'percentile' has no ranges for"):
        simulator.calibrate(DATA, Percentile(99))
    simulator.recalibrate("mse")
    simulator.recalibrate(MinMaxRange())


def test_what_the_target_does_not_have_is_refused() -> None:
    with pytest.raises(FormatError, match="quantizes activations per-tensor, not per-channel"):
        registry().target("default").activation_format("uint8 per-channel")
    with pytest.raises(TargetError, match=r"test\.toml: activations\.granularities: unknown 'per-row'"):
        target('["per-row"]')


@pytest.mark.parametrize("text", ["uint4", "int4", "uint8", "int8"])
@pytest.mark.parametrize("kind", ["laplace", "relu"])
def test_the_range_of_the_model_is_near_the_best_of_the_values(kind: str, text: str) -> None:
    """On values that are distributed as assumed, against all ranges of a dense grid."""
    spec = QuantSpec.parse(f"{text} per-channel")
    x = np.random.default_rng(0).laplace(size=(1, 3, 40_000)) * np.array([1.0, 20.0, 0.01])[None, :, None]
    x = np.float32(np.abs(x) if kind == "relu" else x)
    channels = ChannelRange()
    channels.update(x, 1)
    low, high = MeanSquareError().channel_range(channels, spec)
    for channel in range(3):
        values = x[0, channel]
        grid = QuantSpec.parse(text)

        def error(a: float, b: float, values: np.ndarray = values, grid: QuantSpec = grid) -> float:
            return float(np.mean(np.square(encode_range(a, b, grid).fake_quantize(values) - values)))

        shares = np.linspace(0.05, 1, 60)
        best = min(error(float(values.min()) * s, float(values.max()) * s) for s in shares)
        assert (
            error(low[channel], high[channel]) <= best * 1.15
        )  # the model knows only the mean square, not these very tails


def test_float_formats_and_empty_channels_keep_all() -> None:
    channels = ChannelRange()
    channels.update(np.float32([[0, 1], [0, -2]]), 1)
    for text in ("uint8 per-channel", "float8e4m3 per-channel"):
        low, high = smallest_channel_errors(channels, QuantSpec.parse(text))
        assert (low[0], high[0]) == (0, 0)


def test_parts_merge_to_the_same_bits() -> None:
    batches = np.random.default_rng(0).standard_normal((27, 2, 5)).astype(np.float32) * 1e3
    whole, merged = ChannelRange(), ChannelRange()
    for batch in batches:
        whole.update(batch, 1)
    for start in range(0, 27, 8):
        part = merged.blank()
        for batch in batches[start : start + 8]:
            part.update(batch, 1)
        merged.merge(ChannelRange.from_arrays(part.arrays()))
    for name, array in whole.arrays().items():
        np.testing.assert_array_equal(merged.arrays()[name], array, err_msg=name)
    np.testing.assert_allclose(whole.mean_square, np.square(batches.astype(np.float64)).mean(axis=(0, 1)))
    with pytest.raises(DataError, match="ranges of 5 and 2 channels do not add up"):
        whole.update(batches[0], 0)


def test_non_finite_values_are_counted_and_left_out() -> None:
    channels = ChannelRange()
    channels.update(np.float32([[1, np.nan], [3, 4], [np.inf, 5]]), 1)
    assert channels.non_finite == 2
    assert (channels.minimum.tolist(), channels.maximum.tolist()) == ([1, 4], [3, 5])
    statistics = Statistics({Tensor("x"): channels})
    assert Statistics.from_bytes(statistics.to_bytes()).channels(Tensor("x")).non_finite == 2
    with pytest.raises(DataError, match="no channels of 'y' were seen"):
        statistics.channels(Tensor("y"))
