"""Encoding: what is valid, how it meets tensors, equality; Encodings: finding by site and name."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from isobit.encodings import Encoding, Encodings, PerTensor, QuantSpec
from isobit.errors import EncodingError
from isobit.graph import Input, Tensor, Weight, site_key, site_of


def encoding(text: str, scale: Any, zero_point: Any = 0, axis: int | None = None, **parts: Any) -> Encoding:
    zero = np.broadcast_to(np.asarray(zero_point, np.int32), np.shape(scale))
    return Encoding(QuantSpec.parse(text), np.asarray(scale, np.float32), zero, axis, **parts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("int8 per-tensor", [1.0, 2.0]), "a per-tensor encoding has one scale, not an array of shape (2,)"),
        (("int8 per-channel", 1.0, 0, 0), "a per-channel encoding has a list of scales and an axis"),
        (("int8 per-channel", [1.0]), "a per-channel encoding has a list of scales and an axis"),
        (("int8 per-channel", [[1.0]], 0, 0), "a per-channel encoding has a list of scales and an axis"),
        (("int8 per-channel", [1.0], 0, -1), "an axis is counted from 0, not -1"),
        (("int8 block=2", [[1.0]]), "needs the axis of its blocks"),
        (("int8 block=2", [[1.0]], 0, 2), "needs the axis of its blocks"),
        (("int8", np.nan), "scales must be finite"),
        (("int8", np.inf), "found inf"),
        (("int8", 0.0), "found 0.0"),
        (("int8", -1.0), "found -1.0"),
        (("int8", 1e-39), "at least 1.175e-38"),
        (("int8 per-channel", [1.0, 0.0, 2.0], 0, 0), "found 0.0"),
        (("uint8", 1.0, 256), "zero points of uint8 lie in [0, 255]"),
        (("uint8", 1.0, -1), "zero points of uint8 lie in [0, 255]"),
        (("int4 asymmetric", 1.0, 8), "zero points of int4 lie in [-8, 7]"),
        (("int8", 1.0, 1), "the zero point of a symmetric int8 is 0"),
        (("uint8 symmetric", 1.0, 128), "the zero point of a symmetric uint8 is 0"),
        (("float8e4m3", 1.0, 1), "float8e4m3 has no zero point"),
    ],
)
def test_what_is_no_encoding(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(EncodingError, match=re.escape(message)):
        encoding(*arguments)


@pytest.mark.parametrize("zero_point", [[0, 0, 0], [0], [[0, 0]]])
def test_zero_points_of_another_shape_are_refused(zero_point: list[Any]) -> None:
    with pytest.raises(EncodingError, match="do not fit scales of shape"):
        Encoding(QuantSpec.parse("uint8 per-channel"), np.float32([1, 2]), np.int32(zero_point), 0)


def test_zero_points_must_be_integers() -> None:
    with pytest.raises(EncodingError, match="zero points are integers, not float64"):
        Encoding(QuantSpec.parse("uint8"), np.float32(1), np.float64(3))  # type: ignore[arg-type]


def test_a_granularity_left_unsaid_is_per_tensor() -> None:
    assert encoding("int8", 1.0).spec.granularity == PerTensor()


def test_its_arrays_are_its_own_and_read_only() -> None:
    scale = np.array([1.0, 2.0], np.float32)
    encoding_of_array = Encoding(QuantSpec.parse("int8 per-channel"), scale, np.zeros(2, np.int32), 0)
    scale[0] = 5
    assert encoding_of_array.scale.tolist() == [1.0, 2.0]
    for array in (encoding_of_array.scale, encoding_of_array.zero_point):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


# --- LPBQ parts -----------------------------------------------------------------------------------------------------

MULTIPLIER, CHANNEL = np.int32([[1, 16], [3, 2]]), np.float32([[0.1], [0.3]])
LPBQ_SCALE = MULTIPLIER.astype(np.float32) * CHANNEL


def test_lpbq_keeps_its_parts() -> None:
    lpbq = encoding("int4 lpbq=2", LPBQ_SCALE, 0, 1, multiplier=MULTIPLIER, channel_scale=CHANNEL)
    np.testing.assert_array_equal(lpbq.multiplier, MULTIPLIER)
    np.testing.assert_array_equal(lpbq.channel_scale, CHANNEL)
    assert lpbq != encoding("int4 lpbq=2", LPBQ_SCALE, 0, 1)


@pytest.mark.parametrize(
    ("text", "parts", "message"),
    [
        ("int4 lpbq=2", {"multiplier": MULTIPLIER}, "the two parts"),
        ("int4 lpbq=2", {"channel_scale": CHANNEL}, "the two parts"),
        ("int4 block=2", {"multiplier": MULTIPLIER, "channel_scale": CHANNEL}, "of an lpbq encoding, and of no other"),
        ("int4 lpbq=2", {"multiplier": MULTIPLIER - 1, "channel_scale": CHANNEL}, "lie in [1, 16]"),
        ("int4 lpbq=2", {"multiplier": MULTIPLIER + 1, "channel_scale": CHANNEL}, "lie in [1, 16]"),
        ("int4 lpbq=2", {"multiplier": MULTIPLIER[:1], "channel_scale": CHANNEL}, "do not fit scales of shape (2, 2)"),
        ("int4 lpbq=2", {"multiplier": MULTIPLIER, "channel_scale": CHANNEL.T[0]}, "do not fit scales"),
        ("int4 lpbq=2", {"multiplier": MULTIPLIER, "channel_scale": CHANNEL * 2}, "and these differ"),
    ],
)
def test_lpbq_parts_that_do_not_belong_together(text: str, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(EncodingError, match=re.escape(message)):
        encoding(text, LPBQ_SCALE, 0, 1, **parts)


# --- meeting tensors ------------------------------------------------------------------------------------------------


def by_loop(quantizer: Encoding, x: np.ndarray, scale_at: Any) -> np.ndarray:
    """Fake-quantize value by value, with the scale that `scale_at` finds for an index."""
    result = np.empty_like(x)
    for index in np.ndindex(x.shape):
        scale, zero = quantizer.scale[scale_at(index)], int(quantizer.zero_point[scale_at(index)])
        q = min(max(int(np.rint(x[index] / scale)) + zero, quantizer.spec.q_min), quantizer.spec.q_max)
        result[index] = np.float32(q - zero) * scale
    return result


def test_each_granularity_uses_the_right_scale() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 6, 2)).astype(np.float32)
    per_tensor = encoding("uint8", 0.01, 128)
    np.testing.assert_array_equal(per_tensor.fake_quantize(x), by_loop(per_tensor, x, lambda i: ()))
    for axis, size in ((0, 4), (1, 6), (2, 2)):
        zero = rng.integers(0, 15, size)
        channels = encoding("uint4 per-channel", rng.uniform(0.05, 0.3, size), zero, axis)
        np.testing.assert_array_equal(channels.fake_quantize(x), by_loop(channels, x, lambda i, a=axis: (i[a],)))
    blocks = encoding("int4 block=3", rng.uniform(0.05, 0.3, (4, 2, 1)), 0, 1)
    np.testing.assert_array_equal(blocks.fake_quantize(x), by_loop(blocks, x, lambda i: (i[0], i[1] // 3, 0)))
    np.testing.assert_array_equal(blocks.dequantize(blocks.quantize(x)), blocks.fake_quantize(x))


@pytest.mark.parametrize(
    ("quantizer", "shape", "message"),
    [
        (encoding("int8 per-channel", [1.0, 2.0], 0, 2), (2, 2), "axis 2 does not exist in a tensor of shape (2, 2)"),
        (encoding("int8 per-channel", [1.0, 2.0], 0, 1), (2, 3), "2 channel scales along axis 1 do not fit"),
        (encoding("int8 block=2", [[1.0, 2.0]], 0, 1), (1, 3), "block scales of shape (1, 2) do not fit"),
        (encoding("int8 block=2", [[1.0, 2.0]], 0, 1), (1, 4, 1), "do not fit a tensor of shape (1, 4, 1)"),
        (encoding("int8 block=2", [[1.0], [2.0]], 0, 1), (3, 2), "do not fit a tensor of shape (3, 2)"),
    ],
)
def test_tensors_that_do_not_fit(quantizer: Encoding, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(EncodingError, match=re.escape(message)):
        quantizer.fake_quantize(np.zeros(shape, np.float32))


def test_bounds_are_the_ends_of_the_grid() -> None:
    uint8 = encoding("uint8", 0.5, 10)
    assert (uint8.minimum, uint8.maximum) == (-5.0, 122.5)
    strict = encoding("int8 strict per-channel", [1.0, 2.0], 0, 0)
    assert strict.minimum.tolist() == [-127, -254]
    assert strict.maximum.tolist() == [127, 254]
    small = encoding("float8e4m3", 2.0)
    assert (small.minimum, small.maximum) == (-896.0, 896.0)


def test_float_formats_round_but_have_no_integers() -> None:
    float8 = encoding("float8e4m3", 2.0)
    assert float8.fake_quantize(np.float32([1.0, 2.1, 1e9])).tolist() == [1.0, 2.0, 896.0]
    assert encoding("float16", 1.0).fake_quantize(np.float32([2049.0])).tolist() == [2048.0]
    with pytest.raises(EncodingError, match="float8e4m3 has no integers"):
        float8.quantize(np.float32([1.0]))


# --- equality -------------------------------------------------------------------------------------------------------


def test_equal_means_the_same_grid_bit_for_bit() -> None:
    first = encoding("uint8", 0.1, 3)
    same = encoding("uint8 per-tensor", 0.1, 3)
    assert first == same
    assert hash(first) == hash(same)
    different = [
        encoding("uint8", np.nextafter(np.float32(0.1), np.float32(1)), 3),
        encoding("uint8", 0.1, 4),
        encoding("uint8 per-channel", [0.1], 3, 0),
        encoding("int8 asymmetric", 0.1, 3),
    ]
    assert all(other != first for other in different)
    assert encoding("int8 per-channel", [1.0], 0, 0) != encoding("int8 per-channel", [1.0], 0, 1)
    assert first != "uint8"


# --- the encodings of a model ---------------------------------------------------------------------------------------

A, B, C = encoding("uint8", 0.1), encoding("int8", 0.2), encoding("int8", 0.3)
MODEL = Encodings({Tensor("relu"): A, Weight("conv.weight"): B, Input("conv", 0): C})


def test_found_by_site_and_by_name() -> None:
    assert MODEL[Tensor("relu")] is MODEL["relu"] is A
    assert MODEL[Weight("conv.weight")] is MODEL["conv.weight"] is B
    assert MODEL[Input("conv", 0)] is C
    assert "relu" in MODEL
    assert Tensor("relu") in MODEL
    assert Weight("relu") not in MODEL
    assert "conv" not in MODEL
    assert len(MODEL) == 3
    assert list(MODEL) == [Tensor("relu"), Weight("conv.weight"), Input("conv", 0)]


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(EncodingError, match=re.escape("no encoding for 'relo' (did you mean 'relu'?)")):
        MODEL["relo"]


def test_parts_by_kind() -> None:
    assert dict(MODEL.of_kind(Tensor)) == {Tensor("relu"): A}
    assert dict(MODEL.of_kind(Weight)) == {Weight("conv.weight"): B}
    assert dict(MODEL.of_kind(Input)) == {Input("conv", 0): C}


def test_sites_and_their_keys() -> None:
    sites = [Tensor("a"), Weight("a"), Input("a", 2)]
    assert [site_of(*site_key(site)) for site in sites] == sites
    assert [str(site) for site in sites] == ["a", "a", "a[2]"]
    with pytest.raises(EncodingError, match="unknown kind of site 'node'"):
        site_of("node", "a")
