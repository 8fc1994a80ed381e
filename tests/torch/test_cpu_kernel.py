"""The kernel of the CPU against `isobit.arithmetic`, bit for bit, on whatever number of cpu_kernel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isobit import arithmetic
from isobit_torch.simulate import cpu_kernel

F32_MAX = float(np.finfo(np.float32).max)
SPECIAL = np.array(
    [0.0, -0.0, 1e-45, -1e-45, 1.1754942e-38, -1.1754942e-38, F32_MAX, -F32_MAX, np.inf, -np.inf], np.float32
)

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


@settings(max_examples=150)
@given(grid=grids(), scale=scales, values=st.lists(float32s, max_size=20))
def test_the_kernel_gives_the_same_bits(grid: tuple[int, int, int], scale: float, values: list[float]) -> None:
    q_min, q_max, zero_point = grid
    x = np.concatenate([near_ties(scale, zero_point, q_min, q_max), SPECIAL, np.array(values, np.float32)])
    with np.errstate(over="ignore"):
        expected = arithmetic.fake_quantize(x, np.float32(scale), zero_point, q_min, q_max)
    cpu_kernel.fake_quantize_in_place(x, *(np.float32(number) for number in (scale, zero_point, q_min, q_max)))
    np.testing.assert_array_equal(x.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_parts_give_the_bits_of_the_whole(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    values = np.random.default_rng(0).standard_normal(3 * cpu_kernel._PART + 17).astype(np.float32)
    rounded = values.copy()
    cpu_kernel.run_in_parts(rounded, tuple(np.float32(number) for number in (0.02, 7, 0, 255)))
    np.testing.assert_array_equal(rounded, arithmetic.fake_quantize(values, np.float32(0.02), 7, 0, 255))
