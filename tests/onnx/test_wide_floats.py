"""Networks of float16, bfloat16 and float64 are computed in float32 and quantized; their inputs and outputs stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_models import constant, model, node, runtime, value

import isobit
from isobit_onnx.backend import OnnxBackend

RNG = np.random.default_rng(6)
KINDS = {"float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE}


def stored(name: str, array: Any, kind: str) -> onnx.TensorProto:
    return constant(name, np.asarray(array, np.float64), np.dtype(kind))


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape) / np.sqrt(shape[-1])


def dense(kind: str, inside: bool) -> onnx.ModelProto:
    """Layers of a type, all of the network or between two casts."""
    number = KINDS[kind]
    nodes = [
        node("MatMul", "h w", "m"), node("Add", "m b", "a"), node("Relu", "a", "r"),
        node("LayerNormalization", "r g", "n"), node("MatMul", "n v", "o"), node("Mul", "o half", "p"),
    ]  # fmt: skip
    held = {"w": (8, 8), "b": (8,), "v": (8, 4)}
    tensors = {name: stored(name, normal(*shape), kind) for name, shape in held.items()}
    tensors |= {"g": stored("g", np.ones(8), kind), "half": stored("half", 0.5, kind)}
    outer = TensorProto.FLOAT if inside else number
    cast = ("Cast", "Cast") if inside else ("Identity", "Identity")
    to = ({"to": number}, {"to": TensorProto.FLOAT}) if inside else ({}, {})
    ends = [node(cast[0], "x", "h", **to[0])], [node(cast[1], "p", "y", **to[1])]
    nodes = [*ends[0], *nodes, *ends[1]]
    return model(nodes, [value("x", ["n", 5, 8], outer)], [value("y", ["n", 5, 4], outer)], tensors)


def image(kind: str) -> onnx.ModelProto:
    nodes = [
        node("Cast", "x", "h", to=KINDS[kind]), node("Conv", "h w", "c", pads=[1] * 4), node("Clip", "c low high", "r"),
        node("Shape", "r", "s"), node("ConstantOfShape", "s", "k", value=stored("v", [0.25], kind)),
        node("Add", "r k", "t"), node("Cast", "t", "y", to=TensorProto.FLOAT),
    ]  # fmt: skip
    tensors = {"w": stored("w", RNG.standard_normal((4, 3, 3, 3)) / 3, kind)}
    tensors |= {"low": stored("low", 0, kind), "high": stored("high", 6, kind)}
    return model(nodes, [value("x", ["n", 3, 6, 6])], [value("y", None)], tensors)


def choice(kind: str) -> onnx.ModelProto:
    """A branch that has a weight and hands on what is outside."""
    number = KINDS[kind]
    first = helper.make_graph([node("MatMul", "h w", "a")], "then", [], [value("a", None, number)])
    second = helper.make_graph([node("Neg", "h", "b")], "else", [], [value("b", None, number)])
    nodes = [
        node("Cast", "x", "h", to=number), node("If", "flag", "i", then_branch=first, else_branch=second),
        node("MatMul", "i v", "o"), node("Cast", "o", "y", to=TensorProto.FLOAT),
    ]  # fmt: skip
    tensors = {name: stored(name, normal(8, 8), kind) for name in "wv"}
    inputs = [value("x", ["n", 5, 8]), value("flag", [], TensorProto.BOOL)]
    return model(nodes, inputs, [value("y", None)], tensors)


FORMS = {
    "between casts": lambda kind: dense(kind, True),
    "everywhere": lambda kind: dense(kind, False),
    "of images": image,
    "in a branch": choice,
}


@pytest.mark.parametrize(
    ("form", "kind"), [*((form, "float16") for form in FORMS), ("everywhere", "float64"), ("in a branch", "float64")]
)
def test_layers_are_quantized_and_the_ends_keep_their_types(form: str, kind: str, tmp_path: Path) -> None:
    proto = FORMS[form](kind)
    dtype = np.dtype(kind) if form == "everywhere" else np.dtype(np.float32)
    shape = (2, 3, 6, 6) if form == "of images" else (2, 5, 8)
    feeds = {"x": RNG.standard_normal(shape).astype(dtype)}
    if form == "in a branch":
        feeds["flag"] = np.array(True)
    opened = OnnxBackend().open(proto, feeds)
    expected, result = runtime(proto, feeds)["y"], opened.run(feeds)["y"]
    assert result.dtype == expected.dtype == dtype
    np.testing.assert_allclose(result, expected, atol=0.02 if kind == "float16" else 1e-5)
    assert any(f"are {kind} in the model as given" in note for note in opened.graph.notes)
    sim = isobit.quantize(proto, [feeds], method="minmax", recipe="basic", progress=False)
    assert sim.report.coverage.integer_multiply_adds == sim.report.coverage.multiply_adds > 0
    if form == "everywhere":
        written = runtime(onnx.load(sim.export(tmp_path / "out")["model"]), feeds)["y"]
        assert written.dtype == dtype


def test_a_weight_of_bfloat16() -> None:
    array = normal(8, 4).astype(ml_dtypes.bfloat16)
    weight = helper.make_tensor("w", TensorProto.BFLOAT16, array.shape, array.tobytes(), raw=True)
    nodes = [
        node("Cast", "x", "h", to=TensorProto.BFLOAT16), node("MatMul", "h w", "m"),
        node("Cast", "m", "y", to=TensorProto.FLOAT),
    ]  # fmt: skip
    opened = OnnxBackend().open(model(nodes, [value("x", ["n", 8])], [value("y", ["n", 4])], {"w": weight}))
    x = RNG.standard_normal((3, 8)).astype(np.float32)
    np.testing.assert_allclose(opened.run({"x": x})["y"], x @ array.astype(np.float32), atol=1e-5)
    assert [n.op for n in opened.graph.nodes] == ["Linear"]


def test_sizes_that_are_computed_in_float64_stay() -> None:
    nodes = [
        node("MatMul", "x w", "h"), node("Shape", "h", "s", start=1, end=2),
        node("Cast", "s", "d", to=TensorProto.DOUBLE),
        node("Mul", "d share", "e"), node("Cast", "e", "n", to=TensorProto.INT64), node("Slice", "h zero n one", "y"),
    ]  # fmt: skip
    numbers = {name: constant(name, [n], np.int64) for name, n in (("zero", 0), ("one", 1))}
    share = numpy_helper.from_array(np.array([1 / 3]), "share")
    held = {"w": normal(8, 8), "share": share, **numbers}
    opened = OnnxBackend().open(model(nodes, [value("x", ["n", "t", 8])], [value("y", None)], held))
    assert not opened.graph.notes
    for length in (3, 6, 9):
        x = RNG.standard_normal((2, length, 8)).astype(np.float32)
        assert opened.run({"x": x})["y"].shape[1] == int(length * np.float64(1 / 3))
