"""From ranges to encodings: the formulas of the design, in exact arithmetic where they matter."""

from __future__ import annotations

import math
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from isobit.encodings import Encoding, QuantSpec, encode_range, encode_weight
from isobit.encodings.ranges import candidate_grids, smallest_scale, snap_up
from isobit.errors import EncodingError

values = st.floats(-1e6, 1e6, allow_nan=False, width=32)
bits = st.integers(2, 16)
texts = st.builds("{}{}{}".format, st.sampled_from(["int", "uint"]), bits, st.sampled_from(["", " asymmetric"]))
spec_texts = texts | bits.map("int{} strict".format)


def bounds(encoding: Encoding) -> tuple[float, float]:
    """The ends of a per-tensor grid, in float64."""
    steps = encoding.spec.q_min - int(encoding.zero_point), encoding.spec.q_max - int(encoding.zero_point)
    return steps[0] * float(encoding.scale), steps[1] * float(encoding.scale)


@given(low=values, high=values, text=spec_texts, snap=st.booleans())
def test_the_grid_covers_the_range_and_holds_zero(low: float, high: float, text: str, snap: bool) -> None:
    assume(low <= high)
    encoding = encode_range(low, high, QuantSpec.parse(text), snap=snap)
    step = float(encoding.scale)
    # A zero point is a rounded number, so an asymmetric grid is off by half a step at most; a symmetric one is not.
    slack = step * 0.5 if not encoding.spec.symmetric else 0.0
    slack += 2.0**-23 * max(abs(low), abs(high))  # the scale is rounded to float32
    covered = bounds(encoding)
    assert covered[0] <= min(low, 0) + slack
    assert covered[1] >= max(high, 0) - slack
    assert encoding.fake_quantize(np.float32(0)) == 0.0
    assert encoding.spec.q_min <= encoding.zero_point <= encoding.spec.q_max


@given(low=values, high=values, width=bits, signed=st.booleans())
def test_asymmetric_formula(low: float, high: float, width: int, signed: bool) -> None:
    low, high = min(low, high, 0), max(low, high, 0)
    spec = QuantSpec.parse(f"int{width} asymmetric" if signed else f"uint{width}")
    encoding = encode_range(low, high, spec, snap=False)
    exact = (Fraction(high) - Fraction(low)) / (2**width - 1)
    floor = Fraction(min(1.1920929e-7, 0.01 / (2**width - 1)))
    assert encoding.scale == np.float32(float(max(exact, floor)))
    q_min = -(2 ** (width - 1)) if signed else 0
    position = q_min + round(Fraction(-low / float(encoding.scale)))
    assert encoding.zero_point == min(max(position, q_min), q_min + 2**width - 1)


@given(low=values, high=values, width=bits, strict=st.booleans())
def test_symmetric_formula(low: float, high: float, width: int, strict: bool) -> None:
    low, high = min(low, high, 0), max(low, high, 0)
    encoding = encode_range(low, high, QuantSpec.parse(f"int{width}{' strict' * strict}"), snap=False)
    levels = 2**width - 1
    below = math.floor(levels / 2) if strict else math.ceil(levels / 2)
    exact = max(Fraction(high) / math.floor(levels / 2), Fraction(-low) / below)
    floor = Fraction(min(1.1920929e-7, 0.01 / levels))
    assert encoding.scale == np.float32(float(max(exact, floor)))
    assert encoding.zero_point == 0


@given(high=st.floats(0, 1e6, width=32), width=bits)
def test_unsigned_symmetric_formula(high: float, width: int) -> None:
    encoding = encode_range(0.0, high, QuantSpec.parse(f"uint{width} symmetric"), snap=False)
    assert encoding.scale == np.float32(max(high / (2**width - 1), smallest_scale(encoding.spec)))
    assert encoding.zero_point == 0


def test_unsigned_symmetric_refuses_negative_values() -> None:
    with pytest.raises(EncodingError, match=re.escape("reaches down to -0.5: use an asymmetric or a signed format")):
        encode_range(-0.5, 1.0, QuantSpec.parse("uint8 symmetric"))


@pytest.mark.parametrize(("low", "high"), [(np.nan, 1.0), (0.0, np.nan), (-np.inf, 0.0), (0.0, np.inf)])
def test_a_range_must_be_finite(low: float, high: float) -> None:
    with pytest.raises(EncodingError, match="a range must be finite"):
        encode_range(low, high, QuantSpec.parse("uint8"))


@pytest.mark.parametrize("text", ["uint8", "int8", "int16", "uint2", "int8 strict"])
def test_the_smallest_scale(text: str) -> None:
    spec = QuantSpec.parse(text)
    encoding = encode_range(0.0, 0.0, spec, snap=False)
    assert encoding.scale == np.float32(min(1.1920929e-7, 0.01 / (2**spec.bits - 1)))
    assert encode_range(0.0, 0.0, spec).zero_point == (0 if spec.symmetric else spec.q_min)


# --- snapping -------------------------------------------------------------------------------------------------------


@given(st.floats(1e-30, 1e30))
def test_snapping_goes_up_to_twelve_significant_bits(scale: float) -> None:
    snapped = float(snap_up(np.float64(scale)))
    exponent = math.frexp(scale)[1] - 12
    exact = math.ceil(Fraction(scale) / Fraction(2) ** exponent) * Fraction(2) ** exponent
    assert Fraction(snapped) == exact
    assert scale <= snapped <= scale * (1 + 2.0**-11)
    assert float(snap_up(np.float64(snapped))) == snapped
    assert np.float32(snapped) == snapped, "twelve bits are exact in float32"


@given(st.floats(1e-3, 1e3), st.integers(-4, 4))
def test_last_bit_noise_does_not_move_a_snapped_scale(high: float, places: int) -> None:
    noisy = float(np.float32(high)) * (1 + places * 2.0**-23)
    spec = QuantSpec.parse("uint8")
    position = math.ldexp(math.frexp(high / 255)[0], 12)
    assume(abs(position - round(position)) > 0.01)  # not beside one of the 4096 boundaries
    assert encode_range(0, noisy, spec) == encode_range(0, high, spec)


def test_few_scales_move_with_noise() -> None:
    rng = np.random.default_rng(0)
    high = np.exp(rng.uniform(-5, 5, 20000))
    noisy = high * (1 + rng.uniform(-1e-6, 1e-6, high.size))
    spec = QuantSpec.parse("uint8 per-channel")
    moved = encode_range(0 * high, high, spec, axis=0).scale != encode_range(0 * high, noisy, spec, axis=0).scale
    assert moved.mean() < 0.005
    unsnapped = [encode_range(0 * high, h, spec, axis=0, snap=False).scale for h in (high, noisy)]
    assert (unsnapped[0] != unsnapped[1]).mean() > 0.5, "the noise is there"


# --- weights --------------------------------------------------------------------------------------------------------


def weight(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("text", ["int8", "uint8", "int4 strict", "int4 asymmetric"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_per_channel_weights_channel_by_channel(text: str, axis: int) -> None:
    values = weight(4, 3, 5)
    spec = QuantSpec.parse(text)
    whole = encode_weight(values, QuantSpec.parse(f"{text} per-channel"), channel_axis=axis)
    assert whole.axis == axis
    for channel in range(values.shape[axis]):
        part = values.take(channel, axis)
        of_channel = encode_range(part.min(), part.max(), spec, snap=False)
        assert (whole.scale[channel], whole.zero_point[channel]) == (of_channel.scale, of_channel.zero_point)


def test_an_all_zero_channel_takes_the_median_scale() -> None:
    values = np.float32([[1.0, -1.0], [0.0, 0.0], [4.0, 0.0], [2.0, 2.0]])
    encoding = encode_weight(values, QuantSpec.parse("int8 per-channel"))
    expected = sorted([1.0 / 127, 4.0 / 127, 2.0 / 127])[1]
    assert encoding.scale[1] == np.float32(expected)
    zeros = encode_weight(np.zeros((2, 2), np.float32), QuantSpec.parse("int8 per-channel"))
    assert zeros.scale.tolist() == [np.float32(smallest_scale(zeros.spec))] * 2


@pytest.mark.parametrize("text", ["int4", "uint4", "int8 strict", "float8e4m3"])
@pytest.mark.parametrize(
    ("shape", "channel_axis", "block_axis"),
    [((4, 6), 0, 1), ((4, 6, 2, 3), 0, 1), ((2, 4, 6), 1, 2), ((6, 4), 1, 0)],
)
def test_blocks_one_by_one(text: str, shape: tuple[int, ...], channel_axis: int, block_axis: int) -> None:
    values = weight(*shape)
    spec = QuantSpec.parse(f"{text} block=3")
    encoding = encode_weight(values, spec, channel_axis=channel_axis, block_axis=block_axis)
    assert encoding.axis == block_axis
    scale, zero = encoding.broadcast(shape)
    scale, zero = np.broadcast_to(scale, shape), np.broadcast_to(zero, shape)
    batch_axes = range(block_axis) if block_axis > channel_axis else (channel_axis,)
    for index in np.ndindex(shape):
        # A block: the same channel (and matrix of a stack), the same run of three, everything behind it.
        where = tuple(
            slice(i // 3 * 3, i // 3 * 3 + 3) if axis == block_axis else i if axis in batch_axes else slice(None)
            for axis, i in enumerate(index)
        )
        block = values[where]
        of_block = encode_range(block.min(), block.max(), QuantSpec.parse(text), snap=False)
        assert (scale[index], zero[index]) == (of_block.scale, of_block.zero_point)


@pytest.mark.parametrize(
    ("shape", "channel_axis", "block_axis", "channel_of"),
    [((4, 6), 0, 1, (0,)), ((4, 6, 2, 2), 0, 1, (0,)), ((2, 4, 6), 1, 2, (0, 1))],
)
def test_lpbq_is_integer_multiples_of_one_scale_a_channel(
    shape: tuple[int, ...], channel_axis: int, block_axis: int, channel_of: tuple[int, ...]
) -> None:
    values = weight(*shape)
    blocks = encode_weight(values, QuantSpec.parse("int4 block=3"), channel_axis=channel_axis, block_axis=block_axis)
    lpbq = encode_weight(values, QuantSpec.parse("int4 lpbq=3"), channel_axis=channel_axis, block_axis=block_axis)
    assert lpbq.multiplier is not None
    assert lpbq.channel_scale is not None
    np.testing.assert_array_equal(lpbq.scale, lpbq.multiplier.astype(np.float32) * lpbq.channel_scale)
    for index in np.ndindex(blocks.scale.shape):
        channel = tuple(index[axis] if axis in channel_of else slice(None) for axis in range(len(shape)))
        largest = blocks.scale[channel].max()
        step = lpbq.channel_scale[tuple(i if axis in channel_of else 0 for axis, i in enumerate(index))]
        assert step == pytest.approx(largest / 16, rel=1e-6)
        assert lpbq.multiplier[index] == min(max(round(float(blocks.scale[index]) / float(step)), 1), 16)


@pytest.mark.parametrize(
    ("text", "block_axis", "message"),
    [
        ("int4 block=4", 1, "block size 4 does not divide axis 1 of a tensor of shape (4, 6)"),
        ("int4 lpbq=4", 1, "block size 4 does not divide axis 1"),
        ("int4 block=3", None, "needs a block axis, and this tensor of shape (4, 6) has none"),
    ],
)
def test_blocks_that_do_not_fit(text: str, block_axis: int | None, message: str) -> None:
    with pytest.raises(EncodingError, match=re.escape(message)):
        encode_weight(weight(4, 6), QuantSpec.parse(text), block_axis=block_axis)


def test_an_empty_weight_has_no_range() -> None:
    with pytest.raises(EncodingError, match="an empty tensor has no range"):
        encode_weight(np.zeros((0, 3), np.float32), QuantSpec.parse("int8"))


@pytest.mark.parametrize("text", ["int8", "int8 per-channel", "int8 block=3"])
def test_weights_are_never_snapped(text: str) -> None:
    encoding = encode_weight(weight(4, 6), QuantSpec.parse(text), block_axis=1)
    assert np.all(snap_up(encoding.scale.astype(np.float64)) != encoding.scale)


@pytest.mark.parametrize("text", ["float16", "bfloat16", "float16 per-channel", "bfloat16 block=3"])
def test_sixteen_bit_floats_have_scale_one(text: str) -> None:
    encoding = encode_weight(weight(4, 6), QuantSpec.parse(text), block_axis=1)
    assert (encoding.scale, encoding.zero_point) == (1, 0)


def test_float8_uses_its_whole_range() -> None:
    encoding = encode_range(-3.0, 2.0, QuantSpec.parse("float8e4m3"))
    assert encoding.scale == np.float32(3.0 / 448)
    assert encoding.minimum == pytest.approx(-3.0)


@pytest.mark.parametrize("spec", ["uint8", "int4", "float8e4m3"])
@pytest.mark.parametrize("snap", [True, False])
def test_a_candidate_has_the_grid_of_its_own_range(spec: str, snap: bool) -> None:
    """Whatever stands beside it, also where it is empty."""
    parsed = QuantSpec.parse(spec)
    ranges = np.array([(0, 0), (-0.3, 1.7), (0, 1e-12), (-2, 0), (0, 0), (0.5, 3)], np.float64)
    grids = candidate_grids(ranges[:, 0], ranges[:, 1], parsed, snap=snap)
    for at, (low, high) in enumerate(ranges):
        encoding = encode_range(low, high, parsed, snap=snap)
        assert (grids.scale[at], grids.zero_point[at]) == (encoding.scale, encoding.zero_point)
