"""The reference arithmetic against exact rational arithmetic, bit by bit."""

from __future__ import annotations

from bisect import bisect_left
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isobit import arithmetic
from isobit.encodings import QuantSpec

F32_MAX = float(np.finfo(np.float32).max)


def rounded(value: Fraction, bits: int, lowest: int, largest_exponent: int) -> Fraction | float:
    """`value` rounded to a binary float of `bits` significant bits, ties to even, exactly.

    `lowest` is the exponent of the smallest subnormal; infinity from ``2**largest_exponent`` on.
    """
    if value == 0:
        return Fraction(0)
    magnitude = abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** exponent > magnitude:
        exponent -= 1
    step = Fraction(2) ** max(exponent - bits + 1, lowest)
    result = round(magnitude / step) * step  # Python rounds a Fraction half to even
    if result >= Fraction(2) ** largest_exponent:
        return float("inf") if value > 0 else float("-inf")
    return result if value > 0 else -result


def as_float32(value: Fraction) -> Fraction | float:
    return rounded(value, 24, -149, 128)


def as_float64(value: Fraction) -> Fraction | float:
    return rounded(value, 53, -1074, 1024)


def exact_integer(x: float, scale: float, zero_point: int, q_min: int, q_max: int) -> int:
    """The rule of QuantizeLinear, one value at a time, every rounding spelt out."""
    to_working = as_float32 if q_max - q_min < 65536 else as_float64
    if x in (float("inf"), float("-inf")):
        return q_max if x > 0 else q_min
    quotient = to_working(Fraction(x) / Fraction(scale))
    if isinstance(quotient, float):
        return q_max if quotient > 0 else q_min
    return max(q_min, min(q_max, round(quotient) + zero_point))


def exact_value(q: int, scale: float, zero_point: int) -> float:
    value = as_float32(Fraction(q - zero_point) * Fraction(scale))
    return float(value)


float32s = st.floats(width=32, allow_nan=False)
scales = st.one_of(
    st.floats(min_value=2.0**-20, max_value=2.0**10, width=32),
    st.floats(min_value=arithmetic.SMALLEST_SCALE, max_value=2.0**100, width=32),
    st.integers(-40, 10).map(lambda e: 2.0**e),
)


@st.composite
def grids(draw: st.DrawFn) -> tuple[int, int, int]:
    """(q_min, q_max, zero point) of 2 to 16 bits: unsigned, signed and strict, symmetric or not."""
    bits = draw(st.integers(2, 16))
    kind = draw(st.sampled_from(["unsigned", "signed", "strict"]))
    q_min, q_max = (0, 2**bits - 1) if kind == "unsigned" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    q_min += kind == "strict"
    zero_point = 0 if kind == "strict" else draw(st.sampled_from([0, q_min, q_max]) | st.integers(q_min, q_max))
    return q_min, q_max, zero_point


def near_ties(scale: float, zero_point: int, q_min: int, q_max: int) -> np.ndarray:
    """Values just below, at and just above boundaries between levels, and around saturation."""
    levels = sorted({q_min, q_min + 1, zero_point - 1, zero_point, zero_point + 1, q_max - 1, q_max})
    steps = np.array([q - zero_point + half for q in levels for half in (-1.5, -0.5, 0.0, 0.5, 1.5)])
    with np.errstate(over="ignore"):
        centre = (steps * scale).astype(np.float32)
        around = [centre]
        for direction in (np.float32(-np.inf), np.float32(np.inf)):
            first = np.nextafter(centre, direction)
            around += [first, np.nextafter(first, direction)]
    return np.concatenate(around)


SPECIAL = np.array(
    [0.0, -0.0, 1e-45, -1e-45, 1.1754942e-38, -1.1754942e-38, F32_MAX, -F32_MAX, np.inf, -np.inf], np.float32
)


@settings(max_examples=150)
@given(grid=grids(), scale=scales, values=st.lists(float32s, max_size=20))
def test_every_result_is_the_exact_one(grid: tuple[int, int, int], scale: float, values: list[float]) -> None:
    q_min, q_max, zero_point = grid
    x = np.concatenate([near_ties(scale, zero_point, q_min, q_max), SPECIAL, np.array(values, np.float32)])
    expected = np.array([exact_integer(float(v), scale, zero_point, q_min, q_max) for v in x])
    s = np.float32(scale)
    with np.errstate(over="ignore"):
        q = arithmetic.quantize(x, s, zero_point, q_min, q_max)
        real = arithmetic.dequantize(q, s, zero_point)
        fake = arithmetic.fake_quantize(x, s, zero_point, q_min, q_max)
    assert q.dtype == np.int32
    assert real.dtype == fake.dtype == np.float32
    np.testing.assert_array_equal(q, expected)
    back = np.array([exact_value(int(n), scale, zero_point) for n in expected], np.float32)
    np.testing.assert_array_equal(real, back)
    np.testing.assert_array_equal(fake.view(np.uint32), real.view(np.uint32))
    assert not np.any(np.signbit(fake) & (fake == 0)), "no -0.0 comes out"


@given(
    scale=st.floats(min_value=2.0**-40, max_value=2.0**-5, width=32),
    steps=st.lists(st.integers(-(2**31) - 5, 2**31 + 5), min_size=1, max_size=20),
    half=st.sampled_from([0.0, 0.5, -0.5]),
)
def test_int32_is_exact_in_float64(scale: float, steps: list[int], half: float) -> None:
    q_min, q_max = -(2**31), 2**31 - 1
    x = ((np.array(steps, np.float64) + half) * scale).astype(np.float32)
    expected = [exact_integer(float(v), scale, 0, q_min, q_max) for v in x]
    q = arithmetic.quantize(x, np.float32(scale), 0, q_min, q_max)
    np.testing.assert_array_equal(q, expected)
    fake = arithmetic.fake_quantize(x, np.float32(scale), 0, q_min, q_max)
    np.testing.assert_array_equal(fake, arithmetic.dequantize(q, np.float32(scale), 0))
    # 31 bits by 24 bits need 55: one float64 rounding before the float32 one, so half a last place more at most.
    reference = np.array([exact_value(n, scale, 0) for n in expected], np.float32)
    np.testing.assert_allclose(fake, reference, rtol=2.0**-23)


def test_ties_go_to_even() -> None:
    x = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32)
    assert arithmetic.quantize(x, 1.0, 0, -8, 7).tolist() == [-2, -2, 0, 0, 2, 2]


def test_ties_round_before_the_zero_point_is_added() -> None:
    x = np.array([0.5, 1.5, 2.5], np.float32)
    assert arithmetic.quantize(x, 1.0, 3, 0, 15).tolist() == [3, 5, 5]


def test_scale_and_zero_point_broadcast() -> None:
    x = np.array([[1.0, 2.0], [10.0, 20.0]], np.float32)
    scale, zero_point = np.array([[1.0], [10.0]], np.float32), np.array([[1], [2]], np.int32)
    assert arithmetic.quantize(x, scale, zero_point, 0, 255).tolist() == [[2, 3], [3, 4]]
    assert arithmetic.fake_quantize(x, scale, zero_point, 0, 255).tolist() == x.tolist()


def test_float64_inputs_are_rounded_to_float32_first() -> None:
    just_above = np.float64(0.5) + 1e-12  # float32 cannot tell it from the tie
    assert arithmetic.quantize(just_above, 1.0, 0, -8, 7) == 0


def test_scalars_give_zero_dimensional_results() -> None:
    assert arithmetic.fake_quantize(0.3, np.float32(0.25), 0, -8, 7).shape == ()
    assert arithmetic.quantize(0.3, np.float32(0.25), 0, -8, 7).shape == ()


@pytest.mark.parametrize("bits", range(2, 17))
def test_every_level_of_a_grid_survives(bits: int) -> None:
    for text in (f"int{bits}", f"uint{bits}", f"int{bits} strict"):
        spec = QuantSpec.parse(text)
        levels = np.arange(spec.q_min, spec.q_max + 1)
        assert levels.size == 2**bits - spec.strict
        scale = np.float32(0.1)
        back = arithmetic.quantize(arithmetic.dequantize(levels, scale, 0), scale, 0, spec.q_min, spec.q_max)
        np.testing.assert_array_equal(back, levels)


# --- smaller floats -------------------------------------------------------------------------------------------------

FLOAT8 = {"float8e4m3": (4, 3, 7, 448.0), "float8e5m2": (5, 2, 15, 57344.0)}


def float8_values(exponent_bits: int, mantissa_bits: int, bias: int, largest: float) -> list[tuple[float, int]]:
    """Every finite non-negative value of a float8 format, from its definition, with its last mantissa bit."""
    values = []
    for exponent in range(2**exponent_bits):
        for mantissa in range(2**mantissa_bits):
            if exponent == 0:
                value = mantissa * 2.0 ** (1 - bias - mantissa_bits)
            else:
                value = (1 + mantissa / 2**mantissa_bits) * 2.0 ** (exponent - bias)
            if value <= largest:
                values.append((value, mantissa & 1))
    return sorted(values)


@pytest.mark.parametrize("dtype", FLOAT8)
@given(values=st.lists(float32s, min_size=1, max_size=20))
def test_float8_is_the_nearest_value_and_saturates(dtype: str, values: list[float]) -> None:
    table = float8_values(*FLOAT8[dtype])
    magnitudes = [value for value, _ in table]
    ties = [(a + b) / 2 for a, b in pairwise(magnitudes)]
    x = np.array([*values, *ties, *np.nextafter(np.float32(ties), np.float32(np.inf)), *magnitudes], np.float32)
    x = np.concatenate([x, -x])
    expected = []
    for value in x:
        magnitude = min(abs(float(value)), magnitudes[-1])
        above = bisect_left(magnitudes, magnitude)
        near = table[max(above - 1, 0) : above + 1]
        nearest = min(near, key=lambda entry: (abs(Fraction(entry[0]) - Fraction(magnitude)), entry[1]))
        expected.append(np.copysign(nearest[0], value))
    np.testing.assert_array_equal(arithmetic.cast(x, dtype), np.array(expected, np.float32))
    assert arithmetic.largest_float(dtype) == magnitudes[-1]


@given(values=st.lists(float32s, min_size=1, max_size=30))
def test_float16_and_bfloat16_round_to_nearest_even_and_overflow(values: list[float]) -> None:
    x = np.array([*values, 65504.0, 65519.0, 65520.0, -65520.0, 2049.0, 2051.0, 257.0, 259.0, 3.39e38], np.float32)
    for dtype, (bits, lowest, top) in {"float16": (11, -24, 16), "bfloat16": (8, -133, 128)}.items():
        exact = [float(v) if np.isinf(v) else float(rounded(Fraction(float(v)), bits, lowest, top)) for v in x]
        np.testing.assert_array_equal(arithmetic.cast(x, dtype), np.array(exact, np.float32), err_msg=dtype)


def test_largest_floats() -> None:
    assert arithmetic.largest_float("float16") == 65504.0
    assert arithmetic.largest_float("bfloat16") == (2 - 2.0**-7) * 2.0**127
