"""The simulator's rounding, the core's and onnxruntime's own QuantizeLinear are the same bits."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from isobit.encodings import Encoding, QuantSpec
from isobit.graph import Tensor
from isobit_onnx.backend import OnnxBackend

FORMATS = [
    f"{kind}{bits}{symmetry}"
    for bits in range(2, 17)
    for kind, symmetry in (
        ("int", ""),
        ("int", " asymmetric"),
        ("int", " strict"),
        ("uint", ""),
        ("uint", " symmetric"),
    )
]
ONNX_TYPES = {
    "int4": TensorProto.INT4, "uint4": TensorProto.UINT4, "int8": TensorProto.INT8, "uint8": TensorProto.UINT8,
    "int16": TensorProto.INT16, "uint16": TensorProto.UINT16,
}  # fmt: skip


@cache
def negation_model():
    """y = -x: a function whose output shows the quantized input exactly."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"], "negate")], "negation", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return OnnxBackend().open(model)


def values_around_ties(encoding: Encoding, rng: np.random.Generator) -> np.ndarray:
    """Every level and tie of small grids (a sample of large ones), their neighbours, and values beyond the grid."""
    spec = encoding.spec
    steps = np.arange(spec.q_min - 2, spec.q_max + 3, dtype=np.float64) - int(encoding.zero_point)
    if steps.size > 600:
        steps = np.concatenate([steps[:150], rng.choice(steps, 300, replace=False), steps[-150:]])
    at = np.concatenate([steps, steps + 0.5]) * float(encoding.scale)
    exact = at.astype(np.float32)
    up, down = np.nextafter(exact, np.float32(np.inf)), np.nextafter(exact, np.float32(-np.inf))
    extreme = np.array([0.0, -0.0, 1e-40, -1e-40, 3e38, -3e38], np.float32)
    return np.concatenate([exact, up, down, extreme])


def simulated(encoding: Encoding, values: np.ndarray) -> np.ndarray:
    model = negation_model()
    model.set_quantizers({Tensor("x"): encoding})
    return -model.run({"x": values})["y"]


def executed(encoding: Encoding, values: np.ndarray) -> np.ndarray:
    """onnxruntime's QuantizeLinear -> DequantizeLinear, built here with onnx.helper."""
    kind = ONNX_TYPES[encoding.spec.type_name]
    scale = helper.make_tensor("s", TensorProto.FLOAT, [], [float(encoding.scale)])
    zero = helper.make_tensor("z", kind, [], [int(encoding.zero_point)])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("x", "y"))
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "qdq", [x], [y], [scale, zero]),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": values})[0]


def assert_same_bits(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


def make_encoding(text: str, scale: float, position: float) -> Encoding:
    spec = QuantSpec.parse(text)
    zero = 0 if spec.symmetric else round(spec.q_min + position * (spec.q_max - spec.q_min))
    return Encoding(spec, np.float32(scale), np.int32(zero))


@pytest.mark.parametrize("text", FORMATS)
@settings(max_examples=6, deadline=None)
@given(
    scale=st.builds(lambda mantissa, exponent: mantissa * 2.0**exponent, st.floats(1, 2), st.integers(-100, 60)),
    position=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_simulator_rounds_like_the_core_and_like_onnxruntime(text, scale, position, seed):
    encoding = make_encoding(text, scale, position)
    rng = np.random.default_rng(seed)
    noise = (rng.standard_normal(64) * scale * 2.0 ** (encoding.spec.bits - 1)).astype(np.float32)
    values = np.concatenate([values_around_ties(encoding, rng), noise])
    expected = encoding.fake_quantize(values)
    rounded = simulated(encoding, values)
    # -(-0.0): the negation shows 0.0 as -0.0 and back, so zeros are compared as numbers and the rest as bits.
    nonzero = expected != 0
    assert_same_bits(rounded[nonzero], expected[nonzero])
    np.testing.assert_array_equal(rounded[~nonzero], 0)
    if encoding.spec.type_name in ONNX_TYPES and not encoding.spec.strict:
        assert_same_bits(executed(encoding, values), expected)


@pytest.mark.parametrize("text", ["float16", "bfloat16", "float8e4m3", "float8e5m2"])
def test_float_formats_match_the_core(text):
    spec = QuantSpec.parse(text)
    scale = 0.37 if text.startswith("float8") else 1.0
    encoding = Encoding(spec, np.float32(scale), np.int32(0))
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(4000) * np.exp(rng.uniform(-12, 9, 4000))).astype(np.float32)
    np.testing.assert_array_equal(simulated(encoding, values), encoding.fake_quantize(values))
