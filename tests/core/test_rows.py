"""Rows: im2col against loops over every output, and a choice of stamps that does not depend on batching."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isobit.errors import DataError, ModelError
from isobit.graph import Graph, Node, Tensor, TensorInfo, WeightInfo
from isobit.statistics import Patches, Rows, Statistics


def all_rows(patches, batch):
    """Every row of a batch, and the output's shape."""
    samples = patches.samples(batch)
    size = patches.output_size(samples.shape)
    count = samples.shape[0]
    sample = np.repeat(np.arange(count), int(np.prod(size)))
    position = np.tile(np.arange(int(np.prod(size))), count)
    return patches.gather(samples, sample, position), (count, *size)


def products(patches, rows, weight):
    """(rows, outputs): what the node computes at each row, without bias."""
    return np.einsum("ngc,goc->ngo", rows.astype(np.float64), patches.matrix(weight)).reshape(len(rows), -1)


def loops_conv(x, w, p):
    """Convolution by the definition, one multiplication at a time."""
    n, out_channels = len(p.kernel), w.shape[0]
    per = out_channels // p.groups
    out = np.zeros((x.shape[0], out_channels, *p.output_size(x.shape)))
    for b, o in itertools.product(range(x.shape[0]), range(out_channels)):
        for c in range(w.shape[1]):
            source = x[b, (o // per) * w.shape[1] + c]
            for tap in itertools.product(*map(range, p.kernel)):
                places = map(range, source.shape) if p.op == "ConvTranspose" else map(range, out.shape[2:])
                for at in itertools.product(*places):
                    opposite = tuple(
                        a * s + t * d - pad
                        for a, s, t, d, pad in zip(at, p.strides, tap, p.dilations, p.pads[:n], strict=True)
                    )
                    into, read = (opposite, at) if p.op == "ConvTranspose" else (at, opposite)
                    limit = out.shape[2:] if p.op == "ConvTranspose" else source.shape
                    if all(0 <= t < size for t, size in zip(opposite, limit, strict=True)):
                        out[(b, o, *into)] += source[read] * w[(o, c, *tap)]
    return out


@st.composite
def geometries(draw):
    n = draw(st.integers(1, 3))
    groups, per_in, per_out = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    pick = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(n))  # noqa: E731
    op = draw(st.sampled_from(["Conv", "ConvTranspose"]))
    strides, dilations = pick(1, 3), pick(1, 2)
    kernel = pick(1, 3)
    pads = tuple(draw(st.integers(0, 1)) for _ in range(2 * n))
    extra = tuple(draw(st.integers(0, s - 1)) for s in strides) if op == "ConvTranspose" else (0,) * n
    patches = Patches(op, (groups * per_out, per_in, *kernel), groups, strides, dilations, pads, extra)
    return patches, draw(st.integers(0, 2**16))


@settings(max_examples=40, deadline=None)
@given(geometries())
def test_convolutions_of_all_kinds(drawn):
    """1 to 3 axes, pads, strides, dilations, groups, transposed with output padding."""
    patches, seed = drawn
    rng = np.random.default_rng(seed)
    x = rng.integers(-9, 9, (2, patches.channels, *(5,) * len(patches.kernel))).astype(np.float32)
    w = rng.integers(-9, 9, patches.weight_shape).astype(np.float32)
    rows, (count, *size) = all_rows(patches, x)
    outputs = products(patches, rows, w).reshape(count, *size, -1)
    np.testing.assert_array_equal(np.moveaxis(outputs, -1, 1), loops_conv(x, w, patches))


@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 6), (4, 2, 3, 6)])
def test_linear_of_any_rank(shape):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal(shape).astype(np.float32), rng.standard_normal((5, 6)).astype(np.float32)
    patches = Patches("Linear", w.shape)
    rows, _ = all_rows(patches, x)
    np.testing.assert_allclose(products(patches, rows, w), (x.astype(np.float64) @ w.T).reshape(-1, 5), rtol=1e-12)


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_stacks_of_matrices(lead):
    """MatMul with a stacked constant, stored (batch, out, in): each matrix is a group."""
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((*lead, 3, 4, 6)), rng.standard_normal((3, 5, 6))
    patches = Patches("MatMul", w.shape, 3)
    rows, _ = all_rows(patches, x.astype(np.float32))
    expected = np.moveaxis(x.astype(np.float32).astype(np.float64) @ w.swapaxes(-1, -2), -3, -2)
    np.testing.assert_allclose(products(patches, rows, w), expected.reshape(-1, 15), rtol=1e-10)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 200))
def test_batching_does_not_matter(sizes, limit):
    """Same rows, same stamps, for one batch, for any cut, and for parts that are merged; never more than the limit."""
    data = np.random.default_rng(2).standard_normal((sum(sizes), 2, 5, 4)).astype(np.float32)
    patches = Patches("Conv", (3, 2, 3, 3), 1, (1, 1), (1, 1), (1, 1, 1, 1), (0, 0))
    whole = Rows(patches, limit)
    whole.update(data)
    cut, merged, start = Rows(patches, limit), Rows(patches, limit), 0
    for size in sizes:
        cut.update(data[start : start + size])
        assert len(cut.values) == len(cut)  # reading the values between two updates changes nothing
        part = Rows(patches, limit, first=start)
        part.update(data[start : start + size])
        merged.merge(part)
        start += size
    for in_parts in (cut, merged):
        np.testing.assert_array_equal(in_parts.stamps, whole.stamps)
        np.testing.assert_array_equal(in_parts.values, whole.values)
        assert (in_parts.samples, in_parts.level) == (whole.samples, whole.level)
    assert len(whole) <= limit
    everything, _ = all_rows(patches, data)
    chosen = whole.stamps[:, 0] * 20 + whole.stamps[:, 1]
    np.testing.assert_array_equal(whole.values, everything[chosen])


def test_choice_is_spread():
    """Of many positions every sample, every row and every column of the image is represented about alike."""
    patches = Patches("Conv", (1, 1, 1, 1), 1, (1, 1), (1, 1), (0, 0, 0, 0), (0, 0))
    rows = Rows(patches, 4096)
    for _ in range(8):
        rows.update(np.zeros((16, 1, 32, 32), np.float32))
    sample, position = rows.stamps.T
    assert 2048 < len(rows) <= 4096
    for values, kinds in ((sample, 128), (position // 32, 32), (position % 32, 32)):
        counts = np.bincount(values, minlength=kinds)
        assert counts.min() > 0.6 * counts.mean()


def test_parts_are_merged_in_order():
    patches = Patches("Linear", (2, 3))
    first, second = Rows(patches), Rows(patches, first=5)
    first.update(np.zeros((4, 3), np.float32))
    with pytest.raises(DataError, match="these end before sample 4, and the others begin with 5"):
        first.merge(second)
    with pytest.raises(DataError, match="different layers"):
        first.merge(Rows(Patches("Linear", (2, 4)), first=4))


def test_saved_and_loaded(tmp_path):
    """Rows and Gram are statistics like the others, in one file."""
    rows = Rows(Patches("Linear", (2, 3)), limit=6)
    rows.update(np.arange(24, dtype=np.float32).reshape(8, 3))
    Statistics({Tensor("x"): rows}).save(tmp_path / "rows.npz")
    loaded = Statistics.load(tmp_path / "rows.npz")[Tensor("x")]
    assert isinstance(loaded, Rows)
    np.testing.assert_array_equal(loaded.values, rows.values)
    np.testing.assert_array_equal(loaded.stamps, rows.stamps)
    for continued in (rows, loaded):  # loaded rows take further batches as the saved ones do
        continued.update(np.ones((4, 3), np.float32))
    np.testing.assert_array_equal(loaded.stamps, rows.stamps)


def test_nodes_without_a_geometry_say_why():
    def graph_of(op, weight, **attributes):
        node = Node("layer", op, ("x", weight), ("y",), attributes)
        weights = {"w": WeightInfo((4, 3, 3, 3))} if weight == "w" else {}
        tensors = {"x": TensorInfo((None, 3, 8, 8)), "y": TensorInfo(None), "v": TensorInfo(None)}
        return Graph((node,), ("x",), {"y": "y"}, tensors, weights), node

    with pytest.raises(ModelError, match="constant weight"):
        Patches.of(*graph_of("Conv", "v"))
    with pytest.raises(ModelError, match="constant weight"):
        Patches.of(*graph_of("Relu", "w"))
    with pytest.raises(ModelError, match="padding of 'layer' depends"):
        Patches.of(*graph_of("Conv", "w", auto_pad="SAME_UPPER", kernel_shape=(3, 3)))
    assert Patches.of(*graph_of("Conv", "w", strides=(2, 2))).strides == (2, 2)


def test_tensors_that_do_not_fit():
    with pytest.raises(DataError, match="3 channels cannot read a tensor of shape"):
        Rows(Patches("Conv", (4, 3, 1, 1), 1, (1, 1), (1, 1), (0,) * 4, (0, 0))).update(np.zeros((2, 4, 5, 5)))
    with pytest.raises(DataError, match="6 inputs cannot read"):
        Rows(Patches("Linear", (4, 6))).update(np.zeros((2, 5), np.float32))
    with pytest.raises(DataError, match="stack"):
        Rows(Patches("MatMul", (3, 4, 6), 3)).update(np.zeros((2, 2, 5, 6), np.float32))
