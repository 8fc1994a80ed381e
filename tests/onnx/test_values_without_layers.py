"""Outputs that are constants, values that are sequences or may be missing, and constants stored without zeros."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_models import constant, model, node, opened_alike, runtime, value

import isobit
from isobit_onnx.backend import OnnxBackend

RNG = np.random.default_rng(4)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def with_constants(kind: str) -> onnx.ModelProto:
    nodes = [node("MatMul", "x w", "y")]
    held: dict[str, object] = {"w": normal(8, 4)}
    if kind == "an initializer":
        held["k"] = normal(3, 4)
    elif kind == "handed on":
        held["anchors"] = normal(3, 4)
        nodes.append(node("Identity", "anchors", "k"))
    elif kind == "computed":
        held |= {"anchors": normal(3, 4), "two": np.float32(2)}
        nodes.append(node("Mul", "anchors two", "k"))
    elif kind == "a weight":
        nodes.append(node("Identity", "w", "k"))
    else:
        nodes.append(node("Constant", "", "k", value=constant("v", normal(3, 4))))
    shape = [8, 4] if kind == "a weight" else [3, 4]
    return model(nodes, [value("x", ["n", 8])], [value("y", ["n", 4]), value("k", shape)], held)


@pytest.mark.parametrize("kind", ["an initializer", "handed on", "computed", "a weight", "a node"])
def test_constant_outputs(kind: str, tmp_path: Path) -> None:
    proto, x = with_constants(kind), normal(5, 8)
    opened_alike(proto, {"x": x})
    sim = isobit.quantize(proto, x, method="minmax", recipe="basic", progress=False)
    assert sim.report.counts["weight"] == 1
    path = sim.export(tmp_path / "out")["model"]
    written = runtime(onnx.load(path), {"x": x})
    np.testing.assert_array_equal(written["k"], sim.run({"x": x})["k"])
    if kind != "a weight":
        np.testing.assert_array_equal(written["k"], runtime(proto, {"x": x})["k"])


@pytest.mark.parametrize("twice", [True, False])
def test_an_integer_output_that_is_constant(twice: bool) -> None:
    names = ["k", "l"] if twice else ["k"]
    nodes = [node("MatMul", "x w", "y"), *(node("Identity", "numbers", name) for name in names)]
    held = {"w": normal(8, 4), "numbers": constant("numbers", [1, 2, 3], np.int64)}
    outputs = [value("y", ["n", 4]), *(value(name, [3], TensorProto.INT64) for name in names)]
    opened_alike(model(nodes, [value("x", ["n", 8])], outputs, held), {"x": normal(5, 8)})


def branch(members: str) -> onnx.GraphProto:
    """A branch that makes a sequence."""
    return helper.make_graph([node("SequenceConstruct", members, "made")], "branch", [], [untyped("made")])


def untyped(name: str) -> onnx.ValueInfoProto:
    """A value of a body without a type, as exporters that write functions leave it."""
    return onnx.ValueInfoProto(name=name)


def grown_by_a_loop(*, in_branch: bool = False) -> onnx.NodeProto:
    """A loop that goes on for as long as the data say, and puts something into a sequence in every pass."""
    step = node("SequenceInsert", "held h", "grown")
    if in_branch:
        insert = helper.make_graph([node("SequenceInsert", "held h", "more")], "insert", [], [untyped("more")])
        keep = helper.make_graph([node("Identity", "held", "same")], "keep", [], [untyped("same")])
        step = node("If", "go", "grown", then_branch=insert, else_branch=keep)
    nodes = [step, node("SequenceLength", "grown", "length"), node("Less", "length rows", "go_on")]
    inputs = [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), untyped("held")]
    body = helper.make_graph(nodes, "body", inputs, [untyped("go_on"), untyped("grown")])
    return node("Loop", "- yes e", "s", body=body)


SEQUENCES = {
    "one of a split": [node("SplitToSequence", "h", "s", axis=1, keepdims=1), node("SequenceAt", "s one", "f")],
    "parts joined": [node("SplitToSequence", "h sizes", "s", axis=1), node("ConcatFromSequence", "s", "f", axis=1)],
    "built": [node("Relu", "h", "r"), node("SequenceConstruct", "h r", "s"), node("SequenceAt", "s one", "f")],
    "built and joined": [
        node("SequenceEmpty", "", "e"),
        node("SequenceInsert", "e h", "s"),
        node("SequenceInsert", "s h", "t"),
        node("ConcatFromSequence", "t", "f", axis=0, new_axis=1),
    ],
    "erased": [
        node("SequenceConstruct", "h h", "s"),
        node("SequenceErase", "s", "t"),
        node("SequenceAt", "t zero", "f"),
    ],
    "may be missing": [node("Optional", "h", "o"), node("OptionalGetElement", "o", "f")],
    "a sequence that may be missing": [
        node("SequenceConstruct", "h h", "s"),
        node("Optional", "s", "o"),
        node("OptionalGetElement", "o", "t"),
        node("SequenceAt", "t one", "f"),
    ],
    "grown by a loop": [
        node("SequenceEmpty", "", "e"),
        grown_by_a_loop(),
        node("ConcatFromSequence", "s", "f", axis=0),
    ],
    "of a branch": [
        node("ReduceMax", "h", "most", keepdims=0),
        node("Greater", "most threshold", "large"),
        node("If", "large", "s", then_branch=branch("h h"), else_branch=branch("h")),
        node("SequenceAt", "s zero", "f"),
    ],
    "of a branch in a loop": [
        node("SequenceEmpty", "", "e"),
        grown_by_a_loop(in_branch=True),
        node("ConcatFromSequence", "s", "f", axis=0),
    ],
}  # fmt: skip


@pytest.mark.parametrize("form", SEQUENCES)
def test_sequences_and_optional_values(form: str) -> None:
    sizes = [node("Shape", "x", "size"), node("Gather", "size zero", "rows")]
    nodes = [*sizes, node("MatMul", "x w", "h"), *SEQUENCES[form], node("MatMul", "f v", "y")]
    numbers = {name: constant(name, n, np.int64) for name, n in (("zero", 0), ("one", 1), ("sizes", [2, 4]))}
    flags = {"yes": constant("yes", True, bool), "threshold": constant("threshold", 0.0)}
    held = {"w": normal(8, 8), "v": normal(8, 3), **numbers, **flags}
    proto = model(nodes, [value("x", ["n", 6, 8])], [value("y", None)], held, 18)
    x = normal(2, 6, 8)
    opened_alike(proto, {"x": x})
    assert isobit.quantize(proto, x, method="minmax", recipe="basic", progress=False).report.counts["weight"] == 2


@pytest.mark.parametrize("places", ["flat", "coordinates"])
@pytest.mark.parametrize("as_file", [True, False])
def test_constants_stored_without_their_zeros(places: str, as_file: bool, tmp_path: Path) -> None:
    dense = np.where(RNG.random((8, 4)) < 0.5, normal(8, 4), 0)
    found = np.argwhere(dense) if places == "coordinates" else np.flatnonzero(dense)
    indices = numpy_helper.from_array(found.astype(np.int64), "w_places")
    values = numpy_helper.from_array(dense[dense != 0].astype(np.float32), "w")
    proto = model([node("MatMul", "x w", "y")], [value("x", ["n", 8])], [value("y", ["n", 4])], {})
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, dense.shape))
    x = normal(5, 8)
    if as_file:
        onnx.save(proto, tmp_path / "sparse.onnx")
        opened = OnnxBackend().open(tmp_path / "sparse.onnx")
    else:
        opened = opened_alike(proto, {"x": x})
    np.testing.assert_array_equal(opened.weight("w"), dense.T.astype(np.float32))
