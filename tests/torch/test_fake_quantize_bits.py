"""The quantizers' arithmetic against `isobit.arithmetic`, bit for bit, in every path."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from isobit.encodings import Encoding, QuantSpec
from isobit_torch.simulate.quantizers import Quantizer, WeightQuantizer

FORMATS = [f"{kind}{bits}" for kind in ("int", "uint") for bits in range(2, 17)]
FORMATS += [f"int{bits} strict" for bits in (2, 4, 8, 16)] + [f"int{bits} asymmetric" for bits in (4, 8)]


@st.composite
def encoded(draw: st.DrawFn, channels: int = 0) -> Encoding:
    spec = QuantSpec.parse(draw(st.sampled_from(FORMATS)))
    scale = st.floats(2.0**-20, 1024.0, width=32)
    zero = st.just(0) if spec.symmetric else st.integers(spec.q_min, spec.q_max)
    if not channels:
        return Encoding(spec, np.float32(draw(scale)), np.int32(draw(zero)))
    spec = QuantSpec.parse(f"{spec} per-channel")
    scales = np.array([draw(scale) for _ in range(channels)], np.float32)
    return Encoding(spec, scales, np.array([draw(zero) for _ in range(channels)], np.int32), 1)


def values_near_ties(encoding: Encoding, noise: np.ndarray) -> np.ndarray:
    """Every tie of the grid (of at most 500) and its neighbours in float32, beside arbitrary values."""
    scale, zero = np.float32(encoding.scale.reshape(-1)[0]), int(encoding.zero_point.reshape(-1)[0])
    levels = np.linspace(encoding.spec.q_min - 2, encoding.spec.q_max + 2, 500).round()
    ties = ((levels - zero + 0.5) * scale).astype(np.float32)
    near = [ties, np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(-np.inf))]
    return np.concatenate([*near, noise]).astype(np.float32)


noises = hnp.arrays(np.float32, 24, elements=st.floats(-1e4, 1e4, width=32))


def bits(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy().view(np.uint32)


@settings(max_examples=60, deadline=None)
@given(encoded(), noises)
def test_per_tensor(encoding: Encoding, noise: np.ndarray) -> None:
    x = values_near_ties(encoding, noise)
    expected = encoding.fake_quantize(x).view(np.uint32)
    quantizer = Quantizer(encoding)
    given_x = torch.from_numpy(x.copy())
    with torch.no_grad():
        np.testing.assert_array_equal(bits(quantizer(given_x)), expected)  # the kernel on a copy
        np.testing.assert_array_equal(bits(given_x), x.view(np.uint32))
        np.testing.assert_array_equal(bits(quantizer._compute(given_x)), expected)  # torch's operations
        quantizer.in_place = True
        overwritten = given_x.clone()
        result = quantizer(overwritten)
        assert result.data_ptr() == overwritten.data_ptr()
        np.testing.assert_array_equal(bits(result), expected)
    learned = given_x.clone().requires_grad_()
    np.testing.assert_array_equal(bits(quantizer(learned)), expected)  # with gradients, never in place
    np.testing.assert_array_equal(bits(learned), x.view(np.uint32))


@settings(max_examples=40, deadline=None)
@given(encoded(channels=3), hnp.arrays(np.float32, (4, 3, 5), elements=st.floats(-1e3, 1e3, width=32)))
def test_per_channel(encoding: Encoding, x: np.ndarray) -> None:
    expected = encoding.fake_quantize(x).view(np.uint32)
    for kind in (Quantizer, WeightQuantizer):
        with torch.no_grad():
            np.testing.assert_array_equal(bits(kind(encoding)(torch.from_numpy(x.copy()))), expected)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["float16", "bfloat16", "float8e4m3", "float8e5m2"]), noises)
def test_float_formats(name: str, x: np.ndarray) -> None:
    scale = np.float32(1 if "16" in name else 0.37)
    encoding = Encoding(QuantSpec.parse(name), scale, np.int32(0))
    with torch.no_grad():
        rounded = Quantizer(encoding)(torch.from_numpy(x.copy()))
    np.testing.assert_array_equal(bits(rounded), encoding.fake_quantize(x).view(np.uint32))


@settings(max_examples=30, deadline=None)
@given(st.floats(2.0**-40, 2.0**-10, width=32), noises)
def test_int32_bias(scale: float, x: np.ndarray) -> None:
    encoding = Encoding(QuantSpec.parse("int32"), np.float32(scale), np.int32(0))
    with torch.no_grad():
        rounded = WeightQuantizer(encoding)(torch.from_numpy(x.copy()))
    np.testing.assert_array_equal(bits(rounded), encoding.fake_quantize(x).view(np.uint32))


def test_kernel_in_any_dense_order() -> None:
    encoding = Encoding(QuantSpec.parse("uint8"), np.float32(0.05), np.int32(128))
    x = torch.randn(2, 8, 5, 6)
    expected = encoding.fake_quantize(x.numpy())
    for view in (
        x.clone(),
        x.clone(memory_format=torch.channels_last),
        x.transpose(1, 3).contiguous().transpose(1, 3),
        torch.randn(4, 8, 5, 6)[::2].copy_(x),
    ):
        with torch.no_grad():
            np.testing.assert_array_equal(Quantizer(encoding)(view).numpy(), expected)


def test_kernel_on_several_threads() -> None:
    encoding = Encoding(QuantSpec.parse("uint8"), np.float32(0.05), np.int32(128))
    x = torch.randn(1 << 18) * 3
    with torch.no_grad():
        np.testing.assert_array_equal(Quantizer(encoding)(x).numpy(), encoding.fake_quantize(x.numpy()))
