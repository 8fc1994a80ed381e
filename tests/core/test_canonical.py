"""Raw graphs, written as frameworks write them, become the one canonical form: layers, shapes, attributes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from canonical_form import BATCH_SEQ, IMAGE, canonical, only, weights_of
from sketch import Sketch, ops

from isobit.canonical import canonicalize
from isobit.graph import Graph, Node

# --- linear layers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("bias_shape", [None, (4,), (1, 4)])
def test_gemm_is_linear(trans_b: int, bias_shape: tuple[int, ...] | None) -> None:
    sketch = Sketch()
    x = sketch.input("x", "N", 3)
    weight = sketch.random("fc.weight", *((4, 3) if trans_b else (3, 4)))
    operands = [sketch.random("fc.bias", *bias_shape)] if bias_shape else []
    graph = canonical(sketch, sketch.node("Gemm", x, weight, *operands, name="fc", shape=("N", 4), transB=trans_b))
    node = only(graph)
    assert (node.op, node.inputs) == ("Linear", ("x", "fc.weight", *(["fc.bias"] if bias_shape else [])))
    assert dict(node.attributes) == {}
    read = weights_of(graph, sketch)
    np.testing.assert_array_equal(
        read("fc.weight"), sketch.values["fc.weight"] if trans_b else sketch.values["fc.weight"].T
    )
    if bias_shape:
        assert read("fc.bias").shape == (4,)


@pytest.mark.parametrize(
    ("attributes", "bias"),
    [
        ({"transA": 1}, True),
        ({"alpha": 0.5}, True),
        ({"alpha": 2.0}, False),
        ({"beta": 0.0}, True),
        ({"transA": 1}, False),
    ],
)
def test_gemm_that_does_more_stays(attributes: Mapping[str, Any], bias: bool) -> None:
    sketch = Sketch()
    x = sketch.input("x", 3, 3)
    operands = [sketch.random("w", 3, 4), *([sketch.random("b", 4)] if bias else [])]
    assert ops(canonical(sketch, sketch.node("Gemm", x, *operands, name="fc", shape=(3, 4), **attributes))) == ["Gemm"]


def test_beta_means_nothing_without_a_bias() -> None:
    sketch = Sketch()
    x = sketch.input("x", "N", 3)
    graph = canonical(sketch, sketch.node("Gemm", x, sketch.random("w", 3, 4), name="fc", shape=("N", 4), beta=0.0))
    assert ops(graph) == ["Linear"]


@pytest.mark.parametrize("bias", ["full", "scalar"])
def test_gemm_whose_bias_is_no_vector_stays(bias: str) -> None:
    sketch = Sketch()
    x = sketch.input("x", 2, 3)
    value = sketch.random("b", *((2, 4) if bias == "full" else ()))
    graph = canonical(sketch, sketch.node("Gemm", x, sketch.random("w", 3, 4), value, name="fc", shape=(2, 4)))
    assert ops(graph) == ["Gemm"]


@pytest.mark.parametrize("bias_first", [False, True])
def test_matmul_and_add_are_linear(bias_first: bool) -> None:
    sketch = Sketch()
    x = sketch.input("x", *BATCH_SEQ)
    product = sketch.node("MatMul", x, sketch.random("w", 8, 4), name="mm", shape=("N", 5, 4))
    bias = sketch.random("b", 4)
    operands = (bias, product) if bias_first else (product, bias)
    graph = canonical(sketch, sketch.node("Add", *operands, name="fc", shape=("N", 5, 4)))
    node = only(graph)
    assert (node.op, node.inputs, node.outputs, node.parts) == ("Linear", ("x", "w", "b"), ("fc",), ("mm", "fc"))
    np.testing.assert_array_equal(weights_of(graph, sketch)("w"), sketch.values["w"].T)


def test_a_product_that_others_read_keeps_its_add() -> None:
    sketch = Sketch()
    x = sketch.input("x", *BATCH_SEQ)
    product = sketch.node("MatMul", x, sketch.random("w", 8, 4), name="mm", shape=("N", 5, 4))
    total = sketch.node("Add", product, sketch.random("b", 4), name="fc", shape=("N", 5, 4))
    for outputs in ((total, product), (total, sketch.node("Relu", product, name="r", shape=("N", 5, 4)))):
        assert ops(canonical(sketch, *outputs))[:2] == ["Linear", "Add"]


@pytest.mark.parametrize("shape", [(5, 4), (1, 4), (1,), ()])
def test_an_added_constant_that_is_no_bias_stays(shape: tuple[int, ...]) -> None:
    sketch = Sketch()
    x = sketch.input("x", *BATCH_SEQ)
    product = sketch.node("MatMul", x, sketch.random("w", 8, 4), name="mm", shape=("N", 5, 4))
    graph = canonical(sketch, sketch.node("Add", product, sketch.random("b", *shape), name="fc", shape=("N", 5, 4)))
    assert ops(graph) == ["Linear", "Add"]


def test_products_of_activations_and_by_a_constant_from_the_left_stay() -> None:
    sketch = Sketch()
    x = sketch.input("x", 4, 4)
    y = sketch.node("MatMul", x, x, name="xx", shape=(4, 4))
    graph = canonical(sketch, sketch.node("MatMul", sketch.random("w", 4, 4), y, name="wx", shape=(4, 4)))
    assert ops(graph) == ["MatMul", "MatMul"]


# --- identities and shapes ------------------------------------------------------------------------------------------


def test_identities_go_also_at_the_ends() -> None:
    sketch = Sketch()
    x = sketch.node("Identity", sketch.input("x", "N", 3), name="first", shape=("N", 3))
    y = sketch.node("Relu", x, name="relu", shape=("N", 3))
    z = sketch.node("Dropout", y, sketch.weight("ratio", 0.5), name="drop", shape=("N", 3))
    z = sketch.node("Cast", z, name="cast", shape=("N", 3), to="float32")
    graph = canonical(sketch, sketch.node("Identity", z, name="last", shape=("N", 3)), x)
    assert ops(graph) == ["Relu"]
    assert only(graph).inputs == ("x",)
    assert dict(graph.outputs) == {"out0": "relu", "out1": "x"}


def test_casts_that_change_the_type_stay() -> None:
    sketch = Sketch()
    x = sketch.input("x", "N", 3, dtype="int64")
    assert ops(canonical(sketch, sketch.node("Cast", x, name="cast", shape=("N", 3), to="float32"))) == ["Cast"]


def test_dropout_that_drops_stays() -> None:
    sketch = Sketch()
    x = sketch.input("x", "N", 3)
    ratio, training = sketch.weight("ratio", 0.5), sketch.weight("training", True, np.bool_)
    assert ops(canonical(sketch, sketch.node("Dropout", x, ratio, training, name="d", shape=("N", 3)))) == ["Dropout"]


def test_dropout_whose_mask_is_read_stays() -> None:
    sketch = Sketch()
    sketch.input("x", "N", 3)
    sketch.node("Dropout", "x", name="d", shape=("N", 3))
    sketch.node("Not", "d:1", name="not", shape=("N", 3), dtype="bool")
    raw = sketch.graph("d", "not")
    node = raw.nodes[0]
    masked = Node("d", "Dropout", node.inputs, ("d", "d:1"), {}, ("d",))
    tensors = {**raw.tensors, "d:1": raw.tensors["not"]}
    graph = canonicalize(Graph((masked, *raw.nodes[1:]), raw.inputs, raw.outputs, tensors, {}))
    assert ops(graph) == ["Dropout", "Not"]


def test_a_constant_that_leaves_the_model_keeps_its_identity() -> None:
    sketch = Sketch()
    sketch.input("x", "N", 3)
    graph = canonical(sketch, sketch.node("Identity", sketch.random("w", 3), name="i", shape=(3,)))
    assert ops(graph) == ["Identity"]


def test_settings_given_as_inputs_become_attributes() -> None:
    sketch = Sketch()
    x = sketch.input("x", *IMAGE)
    clip = sketch.node("Clip", x, sketch.weight("low", 0.0), sketch.weight("high", [6.0]), name="clip", shape=IMAGE)
    one_sided = sketch.node("Clip", clip, None, sketch.weight("top", 3.0), name="clip2", shape=IMAGE)
    pads = sketch.weight("pads", [0, 0, 1, 1, 0, 0, 1, 1], np.int64)
    graph = canonical(sketch, sketch.node("Pad", one_sided, pads, name="pad", shape=("N", 3, 10, 10)))
    first, second, pad = graph.nodes
    assert (first.inputs, dict(first.attributes)) == (("x",), {"min": 0.0, "max": 6.0})
    assert (second.inputs, dict(second.attributes)) == (("clip",), {"max": 3.0})
    assert pad.attributes["pads"] == (0, 0, 1, 1, 0, 0, 1, 1)
    assert not graph.weights


def test_computed_settings_stay_inputs() -> None:
    sketch = Sketch()
    x, low = sketch.input("x", "N", 3), sketch.input("low")
    graph = canonical(sketch, sketch.node("Clip", x, low, sketch.weight("high", 6.0), name="clip", shape=("N", 3)))
    assert only(graph).inputs == ("x", "low")
    assert dict(only(graph).attributes) == {"max": 6.0}


def flatten_by_shape(sketch: Sketch, x: str) -> str:
    """``x.reshape(x.shape[0], -1)`` as torch exports it."""
    shape = sketch.node("Shape", x, name="shape", shape=(4,), dtype="int64")
    batch = sketch.node("Gather", shape, sketch.weight("0", 0, np.int64), name="batch", shape=(), dtype="int64")
    first = sketch.node(
        "Unsqueeze", batch, sketch.weight("axes", [0], np.int64), name="first", shape=(1,), dtype="int64"
    )
    target = sketch.node(
        "Concat", first, sketch.weight("rest", [-1], np.int64), name="target", shape=(2,), dtype="int64", axis=0
    )
    return sketch.node("Reshape", x, target, name="flat", shape=("N", 192))


def test_shape_arithmetic_goes() -> None:
    sketch = Sketch()
    graph = canonical(sketch, flatten_by_shape(sketch, sketch.input("x", *IMAGE)))
    node = only(graph)
    assert (node.op, node.inputs, dict(node.attributes)) == ("Reshape", ("x",), {"shape": (-1, 192)})
    assert not graph.weights


@pytest.mark.parametrize("op", ["Reshape", "Flatten", "Squeeze", "Unsqueeze"])
def test_every_reshape_is_the_same(op: str) -> None:
    sketch = Sketch()
    x = sketch.input("x", "N", 3, 1, 1)
    setting = {"Reshape": [0, -1], "Flatten": None, "Squeeze": [2, 3], "Unsqueeze": [1]}[op]
    operands = [] if setting is None else [sketch.weight("s", setting, np.int64)]
    shape = ("N", 1, 3, 1, 1) if op == "Unsqueeze" else ("N", 3)
    node = only(canonical(sketch, sketch.node(op, x, *operands, name="r", shape=shape)))
    assert (node.op, node.inputs) == ("Reshape", ("x",))
    assert dict(node.attributes) == {"shape": (-1, *shape[1:])}


def test_shapes_that_leave_the_model_stay() -> None:
    sketch = Sketch()
    x = sketch.input("x", *IMAGE)
    shape = sketch.node("Shape", x, name="shape", shape=(4,), dtype="int64")
    graph = canonical(
        sketch, sketch.node("Gather", shape, sketch.weight("i", 0, np.int64), name="n", shape=(), dtype="int64")
    )
    assert ops(graph) == ["Shape", "Gather"]


def test_positions_looked_up_by_length_stay() -> None:
    """``x + table[arange(x.shape[1])]``: what is looked up is data, though its indices come from a shape."""
    sketch = Sketch()
    x = sketch.input("x", "N", "T", 8)
    shape = sketch.node("Shape", x, name="shape", shape=(3,), dtype="int64")
    length = sketch.node("Gather", shape, sketch.weight("one", 1, np.int64), name="length", shape=(), dtype="int64")
    steps = sketch.node(
        "Range",
        sketch.weight("start", 0, np.int64),
        length,
        sketch.weight("delta", 1, np.int64),
        name="ids",
        shape=("T",),
        dtype="int64",
    )
    rows = sketch.node("Gather", sketch.random("table", 16, 8), steps, name="positions", shape=("T", 8))
    graph = canonical(sketch, sketch.node("Add", x, rows, name="sum", shape=("N", "T", 8)))
    assert ops(graph) == ["Shape", "Gather", "Range", "Gather", "Add"]
    assert graph.node("sum").inputs == ("x", "positions")


def test_a_scale_computed_from_a_shape_stays() -> None:
    """``q / sqrt(q.shape[-1])`` as torch exports attention."""
    sketch = Sketch()
    q, k = sketch.input("q", "N", 5, 8), sketch.input("k", "N", 8, 5)
    shape = sketch.node("Shape", q, name="shape", shape=(3,), dtype="int64")
    size = sketch.node("Gather", shape, sketch.weight("last", -1, np.int64), name="size", shape=(), dtype="int64")
    real = sketch.node("Cast", size, name="real", shape=(), to="float32")
    root = sketch.node("Sqrt", real, name="root", shape=())
    scaled = sketch.node("Div", q, root, name="scaled", shape=("N", 5, 8))
    graph = canonical(sketch, sketch.node("MatMul", scaled, k, name="scores", shape=("N", 5, 5)))
    assert graph.node("scaled").inputs == ("q", "root")
    assert ops(graph) == ["Shape", "Gather", "Cast", "Sqrt", "Div", "MatMul"]


# --- attributes -----------------------------------------------------------------------------------------------------


def conv_node(attributes: Mapping[str, Any], shape: tuple[Any, ...] = ("N", 3, 7, 8)) -> Node:
    sketch = Sketch()
    x = sketch.input("x", *shape)
    weight = sketch.random("w", 4, 3, 3, 3)
    return only(canonical(sketch, sketch.node("Conv", x, weight, name="c", shape=("N", 4, None, None), **attributes)))


def test_windows_are_written_in_full() -> None:
    assert dict(conv_node({}).attributes) == {
        "group": 1,
        "kernel_shape": (3, 3),
        "strides": (1, 1),
        "dilations": (1, 1),
        "pads": (0, 0, 0, 0),
    }
    assert (
        conv_node({"auto_pad": "VALID"}).attributes
        == conv_node({"auto_pad": "NOTSET"}).attributes
        == conv_node({}).attributes
    )


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_same_padding_is_made_explicit(mode: str, stride: int) -> None:
    """ONNX: the output has ceil(size / stride) places; odd padding goes to the end (UPPER) or the beginning (LOWER)."""
    attributes = conv_node({"auto_pad": mode, "strides": [stride, stride]}).attributes
    assert "auto_pad" not in attributes
    pads = attributes["pads"]
    for axis, size in enumerate((7, 8)):
        total = pads[axis] + pads[axis + 2]
        assert (size + total - 3) // stride + 1 == math.ceil(size / stride)
        needed = max((math.ceil(size / stride) - 1) * stride + 3 - size, 0)
        assert total == needed
        assert pads[axis + 2] - pads[axis] == (needed % 2 if mode == "SAME_UPPER" else -(needed % 2))


def test_same_padding_of_an_unknown_size() -> None:
    assert conv_node({"auto_pad": "SAME_UPPER"}, ("N", 3, "H", None)).attributes["pads"] == (1, 1, 1, 1)
    strided = conv_node({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, ("N", 3, "H", None)).attributes
    assert strided["auto_pad"] == "SAME_UPPER"


def test_same_padding_of_a_transposed_convolution_stays_as_it_was_said() -> None:
    """What it pads follows from the output's shape, which is another attribute."""
    sketch = Sketch()
    x = sketch.input("x", "N", 4, 8, 8)
    weight = sketch.random("w", 4, 3, 3, 3)
    y = sketch.node("ConvTranspose", x, weight, name="up", shape=("N", 3, 8, 8), auto_pad="SAME_UPPER")
    attributes = only(canonical(sketch, y)).attributes
    assert attributes["auto_pad"] == "SAME_UPPER"
    assert "pads" not in attributes


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax", "RMSNormalization", "LayerNormalization"])
@pytest.mark.parametrize("axis", [None, -1, 2])
def test_axes_are_counted_from_the_end(op: str, axis: int | None) -> None:
    sketch = Sketch()
    x = sketch.input("x", *BATCH_SEQ)
    operands = [sketch.random("g", 8)] if op.endswith("Normalization") else []
    attributes = {} if axis is None else {"axis": axis}
    node = only(canonical(sketch, sketch.node(op, x, *operands, name="n", shape=BATCH_SEQ, **attributes)))
    assert node.attributes["axis"] == -1


def test_defaults_are_filled_in_and_the_irrelevant_left_out() -> None:
    sketch = Sketch()
    x = sketch.input("x", *IMAGE)
    y = sketch.node("LeakyRelu", x, name="leaky", shape=IMAGE)
    y = sketch.batch_norm("bn", y, 3, IMAGE)
    y = sketch.node("Concat", y, x, name="cat", shape=("N", 6, 8, 8), axis=-3)
    graph = canonical(sketch, sketch.node("Transpose", y, name="t", shape=(8, 8, 6, "N")))
    attributes = {node.name: dict(node.attributes) for node in graph.nodes}
    assert attributes["leaky"] == {"alpha": 0.01}
    assert attributes["cat"] == {"axis": 1}
    assert attributes["t"] == {"perm": (3, 2, 1, 0)}


def test_reduced_axes_are_sorted_and_counted_from_the_front() -> None:
    sketch = Sketch()
    x = sketch.input("x", *BATCH_SEQ)
    axes = sketch.weight("axes", [-1, 1], np.int64)
    y = sketch.node("ReduceSum", x, axes, name="some", shape=("N", 1, 1))
    graph = canonical(sketch, sketch.node("ReduceMax", y, name="all", shape=(1, 1, 1)))
    assert dict(graph.node("some").attributes) == {"axes": (1, 2), "keepdims": 1}
    assert dict(graph.node("all").attributes) == {"axes": (0, 1, 2), "keepdims": 1}


@pytest.mark.parametrize(("count", "sizes"), [(7, (1,) * 7), (4, (2, 2, 2, 1)), (1, (7,))])
def test_a_number_of_parts_is_their_sizes(count: int, sizes: tuple[int, ...]) -> None:
    sketch = Sketch()
    x = sketch.input("x", "N", 7)
    first = sketch.node("Split", x, name="split", shape=("N", sizes[0]), axis=-1, num_outputs=count)
    assert only(canonical(sketch, first)).attributes == {"axis": 1, "split": sizes}
