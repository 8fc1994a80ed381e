"""Layouts: native arrays to canonical ones and back, against loops over indices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isobit.graph import Blocks, Layout, Permute, Take, View, conv_transpose_layout, to_canonical, to_native
from isobit.graph.layout import TRANSPOSED, compose, inverse, output_shape, resized


@pytest.mark.parametrize(
    ("group", "channels", "out", "kernel"), [(1, 3, 4, (2, 3)), (2, 4, 3, (2, 2)), (3, 6, 2, (5,)), (4, 4, 1, (3, 3))]
)
def test_grouped_transposed_convolutions(group: int, channels: int, out: int, kernel: tuple[int, ...]) -> None:
    native = np.random.default_rng(0).standard_normal((channels, out, *kernel)).astype(np.float32)
    layout = conv_transpose_layout(native.shape, group)
    canonical = to_canonical(native, layout)
    expected = np.empty((group * out, channels // group, *kernel), np.float32)
    for i in range(channels):  # input channel i feeds the outputs of its own group
        for o in range(out):
            expected[i // (channels // group) * out + o, i % (channels // group)] = native[i, o]
    np.testing.assert_array_equal(canonical, expected)
    np.testing.assert_array_equal(to_native(canonical, layout), native)
    assert output_shape(native.shape, layout) == expected.shape


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((3, 4), ()),
        ((), ()),
        ((3, 4), TRANSPOSED),
        ((2, 3, 4), (Permute((2, 0, 1)),)),
        ((2, 3, 4), (View((6, 4), (2, 3, 4)), TRANSPOSED[0])),
        ((1, 5), (View((5,), (1, 5)),)),
    ],
)
def test_there_and_back(shape: tuple[int, ...], layout: Layout) -> None:
    native = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)
    canonical = to_canonical(native, layout)
    assert canonical.shape == output_shape(shape, layout)
    back = to_native(canonical, layout)
    np.testing.assert_array_equal(back, native)
    assert back.shape == shape
    assert back.flags.c_contiguous


def test_a_part_is_written_back_into_the_whole() -> None:
    native = np.zeros((2, 3, 4), np.float32)
    layout = (Take(1), Permute((1, 0)))
    back = to_native(np.ones((4, 3), np.float32), layout, native)
    assert back[1].tolist() == np.ones((3, 4)).tolist()
    assert not back[0].any()
    assert not native.any(), "the original is left alone"
    with pytest.raises(ValueError, match="into the whole array"):
        to_native(np.ones((4, 3), np.float32), layout)


@pytest.mark.parametrize(
    ("before", "shape", "resized", "native"),
    [((1, 6), (6,), (4,), (1, 4)), ((4, 3, 1, 1), (4, 3), (2, 3), (2, 3, 1, 1)), ((6,), (6, 1, 1), (4, 1, 1), (4,))],
)
def test_views_follow_an_edit_of_the_size(
    before: tuple[int, ...], shape: tuple[int, ...], resized: tuple[int, ...], native: tuple[int, ...]
) -> None:
    value = np.arange(int(np.prod(resized)), dtype=np.float32).reshape(resized)
    back = to_native(value, (View(shape, before),))
    assert back.size == value.size
    assert back.reshape(-1).tolist() == value.reshape(-1).tolist()
    assert back.shape == native


permutations = st.permutations(range(3)).map(tuple).map(Permute)


@given(st.lists(permutations, max_size=4), st.lists(permutations, max_size=4))
def test_composing_merges_transpositions(first: list[Permute], second: list[Permute]) -> None:
    x = np.arange(24).reshape(2, 3, 4)
    expected = to_canonical(to_canonical(x, first), second)
    composed = compose(compose((), tuple(first)), tuple(second))
    np.testing.assert_array_equal(to_canonical(x, composed), expected)
    assert len(composed) <= 1
    assert (composed == ()) == (expected.shape == x.shape and bool((expected == x).all()))


def test_composing_keeps_other_steps_in_order() -> None:
    steps = (Take(0), View((6,), (2, 3)))
    assert compose(steps[:1], steps[1:]) == steps
    assert compose((*TRANSPOSED, steps[1]), TRANSPOSED[:0]) == (*TRANSPOSED, steps[1])


@st.composite
def reordered(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...]]:
    order = draw(st.permutations(range(draw(st.integers(1, 5)))))
    shape = (len(order) * draw(st.integers(1, 3)), *draw(st.lists(st.integers(1, 3), max_size=2)))
    return np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape), tuple(order)


@given(reordered())
def test_blocks_of_the_leading_axis(case: tuple[np.ndarray, tuple[int, ...]]) -> None:
    """Row by row, and back; also behind a part of an array, as ONNX keeps a layer's gates."""
    native, order = case
    layout = (Blocks(order),)
    canonical = to_canonical(native, layout)
    size = native.shape[0] // len(order)
    for block, source in enumerate(order):
        for row in range(size):
            np.testing.assert_array_equal(canonical[block * size + row], native[source * size + row])
    assert output_shape(native.shape, layout) == native.shape
    np.testing.assert_array_equal(to_native(canonical, layout), native)
    np.testing.assert_array_equal(to_native(canonical, (Take(0), *layout), np.zeros_like(native)[None])[0], native)


@given(st.permutations(range(4)).map(tuple), st.permutations(range(4)).map(tuple))
def test_composing_merges_reorderings(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    x = np.arange(16).reshape(8, 2)
    steps = (Blocks(first), Blocks(second))
    composed = compose(steps[:1], steps[1:])
    np.testing.assert_array_equal(to_canonical(x, composed), to_canonical(x, steps))
    assert len(composed) <= 1
    assert compose(steps[:1], (Blocks((1, 0)),)) == (*compose((), steps[:1]), Blocks((1, 0)))


def test_a_layout_follows_a_constant_that_an_edit_has_cut() -> None:
    depthwise: Layout = (Permute((2, 3, 0, 1)), View((6, 1, 3, 3), (6, 1, 3, 3)))  # Keras' (height, width, channels, 1)
    cut = resized(depthwise, (4, 1, 3, 3))
    assert output_shape((3, 3, 4, 1), cut) == (4, 1, 3, 3)
    canonical = np.random.default_rng(0).standard_normal((4, 1, 3, 3)).astype(np.float32)
    np.testing.assert_array_equal(to_canonical(to_native(canonical, cut), cut), canonical)
    assert resized(TRANSPOSED, (3, 5)) == TRANSPOSED
    with pytest.raises(ValueError, match="reshape"):  # two channels of six multiples: no whole number is left
        resized((View((6, 1, 3), (2, 3, 3)),), (5, 1, 3))
    with pytest.raises(ValueError, match="part"):
        resized((Take(0),), (3,))


def test_the_steps_that_lead_back() -> None:
    layout = conv_transpose_layout((6, 2, 3), group=2)
    native = np.arange(36).reshape(6, 2, 3)
    np.testing.assert_array_equal(to_canonical(to_canonical(native, layout), inverse(layout)), native)
    assert compose(layout, inverse(layout)) == ()
    assert compose((Blocks((2, 0, 1)),), inverse((Blocks((2, 0, 1)),))) == ()
    with pytest.raises(ValueError, match="part"):
        inverse((Take(0),))
