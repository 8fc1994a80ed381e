"""Raw graphs, written as frameworks write them, become the one canonical form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy_backend import conv_transpose
from sketch import Sketch, ops

from isobit.canonical import canonicalize
from isobit.graph import Graph, Node
from isobit.isomorphism import differences
from isobit.layout import to_canonical

BATCH_SEQ = ("N", 5, 8)
IMAGE = ("N", 3, 8, 8)


def weights_of(graph: Graph, sketch: Sketch) -> Callable[[str], np.ndarray]:
    """Canonical values of the constants of `graph`, through their layouts."""

    def read(name: str) -> np.ndarray:
        info = graph.weights[name]
        value = to_canonical(sketch.values[info.source or name], info.layout)
        assert value.shape == info.shape
        return value

    return read


def canonical(sketch: Sketch, *outputs: str) -> Graph:
    """The canonical graph, after checking what holds for every one."""
    graph = canonicalize(sketch.graph(*outputs))
    again = canonicalize(graph)
    read, read_again = weights_of(graph, sketch), weights_of(again, sketch)
    assert differences(graph, again, read, read_again) == [], "canonicalizing again changes nothing"
    assert [(n.name, n.op, n.inputs, n.parts) for n in again.nodes] == [
        (n.name, n.op, n.inputs, n.parts) for n in graph.nodes
    ]
    assert again.tensors == graph.tensors
    for name, info in graph.weights.items():
        if info.value is not None:
            np.testing.assert_array_equal(info.value, read(name))
    produced = set(graph.inputs)
    for node in graph.nodes:  # every name is defined before it is read
        assert all(name is None or name in produced or name in graph.weights for name in node.inputs), node
        produced.update(node.outputs)
    assert set(graph.outputs.values()) <= produced | set(graph.weights)
    return graph


def only(graph: Graph) -> Node:
    assert len(graph.nodes) == 1, ops(graph)
    return graph.nodes[0]


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


# --- constants ------------------------------------------------------------------------------------------------------


def test_a_tied_weight_is_one_weight() -> None:
    """An embedding table, transposed, is the matrix of the last layer."""
    sketch = Sketch()
    ids = sketch.input("ids", "N", 5, dtype="int64")
    table = sketch.random("embed.weight", 11, 8)
    x = sketch.node("Gather", table, ids, name="embed", shape=("N", 5, 8))
    turned = sketch.node("Transpose", table, name="t", shape=(8, 11), perm=(1, 0))
    graph = canonical(sketch, sketch.node("MatMul", x, turned, name="head", shape=("N", 5, 11)))
    assert ops(graph) == ["Gather", "Linear"]
    assert list(graph.weights) == ["embed.weight"]
    assert [(use.node.name, use.index) for use in graph.uses("embed.weight")] == [("embed", 0), ("head", 1)]
    assert graph.weights["embed.weight"].shape == (11, 8)


def test_two_layers_share_one_turned_weight() -> None:
    sketch = Sketch()
    x = sketch.input("x", "N", 4)
    weight = sketch.random("w", 4, 4)
    y = sketch.node("MatMul", x, weight, name="a", shape=("N", 4))
    graph = canonical(sketch, sketch.node("MatMul", y, weight, name="b", shape=("N", 4)))
    assert list(graph.weights) == ["w"]
    np.testing.assert_array_equal(weights_of(graph, sketch)("w"), sketch.values["w"].T)


def test_a_weight_read_in_two_layouts_is_two_views() -> None:
    sketch = Sketch()
    x = sketch.input("x", "N", 4)
    weight = sketch.random("w", 4, 4)
    y = sketch.node("MatMul", x, weight, name="a", shape=("N", 4))
    graph = canonical(sketch, sketch.node("Gemm", y, weight, name="b", shape=("N", 4), transB=1))
    first, second = (node.inputs[1] or "" for node in graph.nodes)
    assert second == "w"
    assert graph.weights[first].source == graph.weights[second].source == "w"
    read = weights_of(graph, sketch)
    np.testing.assert_array_equal(read(first), sketch.values["w"].T)
    np.testing.assert_array_equal(read(second), sketch.values["w"])


def test_views_of_constants_fold_into_them() -> None:
    sketch = Sketch()
    x = sketch.input("x", *IMAGE)
    scale = sketch.node(
        "Reshape", sketch.random("s", 3), sketch.weight("to", [1, 3, 1, 1], np.int64), name="r", shape=(1, 3, 1, 1)
    )
    shift = sketch.node(
        "Unsqueeze", sketch.random("z", 3, 1), sketch.weight("at", [0, 2], np.int64), name="u", shape=(1, 3, 1, 1)
    )
    y = sketch.node("Mul", x, scale, name="mul", shape=IMAGE)
    graph = canonical(sketch, sketch.node("Add", y, shift, name="add", shape=IMAGE))
    assert ops(graph) == ["Mul", "Add"]
    assert [node.inputs[1] for node in graph.nodes] == ["s", "z"]
    assert graph.weights["s"].shape == graph.weights["z"].shape == (1, 3, 1, 1)


def test_chains_of_views_fold_and_transpositions_cancel() -> None:
    sketch = Sketch()
    x = sketch.input("x", "N", 6)
    value = sketch.random("w", 6, 4)
    turned = sketch.node("Transpose", value, name="t1", shape=(4, 6))
    back = sketch.node("Transpose", turned, name="t2", shape=(6, 4), perm=[1, 0])
    graph = canonical(sketch, sketch.node("MatMul", x, back, name="fc", shape=("N", 4)))
    assert ops(graph) == ["Linear"]
    np.testing.assert_array_equal(weights_of(graph, sketch)("w"), sketch.values["w"].T)


def test_stacked_matrices_are_stored_by_output() -> None:
    sketch = Sketch()
    x = sketch.input("x", 2, 5, 3)
    graph = canonical(sketch, sketch.node("MatMul", x, sketch.random("w", 2, 3, 4), name="mm", shape=(2, 5, 4)))
    node = only(graph)
    assert (node.op, node.inputs) == ("MatMul", ("x", "w"))
    np.testing.assert_array_equal(weights_of(graph, sketch)("w"), sketch.values["w"].swapaxes(1, 2))


@pytest.mark.parametrize("perm", [(0, 2, 1), (1, 0, 2), (2, 1, 0)])
def test_stacked_matrices_that_are_transposed_first(perm: tuple[int, ...]) -> None:
    sketch = Sketch()
    x = sketch.input("x", 3, 5, 3)
    native = sketch.random("w", 3, 3, 3)
    turned = sketch.node("Transpose", native, name="t", shape=(3, 3, 3), perm=perm)
    graph = canonical(sketch, sketch.node("MatMul", x, turned, name="mm", shape=(3, 5, 3)))
    assert only(graph).inputs == ("x", "w")
    np.testing.assert_array_equal(weights_of(graph, sketch)("w"), sketch.values["w"].transpose(perm).swapaxes(1, 2))


@pytest.mark.parametrize("group", [1, 2])
def test_transposed_convolutions_compute_the_same(group: int) -> None:
    sketch = Sketch()
    shape = (1, 4, 3, 3)
    x = sketch.input("x", *shape)
    native = sketch.random("w", 4, 3, 2, 2)
    graph = canonical(
        sketch,
        sketch.node("ConvTranspose", x, native, name="up", shape=(1, 3 * group, 6, 6), group=group, strides=[2, 2]),
    )
    node = only(graph)
    assert node.attributes["kernel_shape"] == (2, 2)
    value = weights_of(graph, sketch)("w").astype(np.float64)
    assert value.shape == (3 * group, 4 // group, 2, 2)
    data = sketch.rng.standard_normal(shape)
    expected = np.zeros((3 * group, 6, 6))
    per_group = 4 // group
    for i in range(4):  # ONNX: weight (in, out/groups, *kernel)
        for o in range(3):
            for row, column in np.ndindex(3, 3):
                stamp = data[0, i, row, column] * sketch.values["w"][i, o]
                expected[i // per_group * 3 + o, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] += stamp
    np.testing.assert_allclose(conv_transpose(node, data, value)[0], expected, rtol=1e-12)


def test_a_transposed_convolution_of_a_transposed_constant() -> None:
    sketch = Sketch()
    x = sketch.input("x", 1, 4, 3, 3)
    native = sketch.random("w", 3, 4, 2, 2)
    turned = sketch.node("Transpose", native, name="t", shape=(4, 3, 2, 2), perm=(1, 0, 2, 3))
    graph = canonical(sketch, sketch.node("ConvTranspose", x, turned, name="up", shape=(1, 3, 4, 4)))
    np.testing.assert_array_equal(weights_of(graph, sketch)("w"), sketch.values["w"])
    assert only(graph).inputs == ("x", "w")


def test_a_recurrent_weight_has_no_direction_axis() -> None:
    sketch = Sketch()
    x = sketch.input("x", 5, "N", 3)
    operands = [sketch.random("w", 1, 16, 3), sketch.random("r", 1, 16, 4), sketch.random("b", 1, 32)]
    graph = canonical(sketch, sketch.node("LSTM", x, *operands, name="lstm", shape=(5, 1, "N", 4), hidden_size=4))
    assert [graph.weights[name].shape for name in "wrb"] == [(16, 3), (16, 4), (32,)]


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


# --- layer norm -----------------------------------------------------------------------------------------------------


def layer_norm(sketch: Sketch, x: str, square: str = "Pow", swap: bool = False, shape: Any = BATCH_SEQ) -> str:
    """A layer norm in elementary ops."""
    mean_shape = (*shape[:-1], 1) if shape is not None else None
    mean = sketch.node("ReduceMean", x, sketch.weight("axes", [-1], np.int64), name="mean", shape=mean_shape)
    centered = sketch.node("Sub", x, mean, name="centered", shape=shape)
    operands = (centered, sketch.weight("two", 2.0)) if square == "Pow" else (centered, centered)
    squared = sketch.node(square, *operands, name="squared", shape=shape)
    variance = sketch.node(
        "ReduceMean", squared, name="variance", shape=mean_shape, axes=[2 if shape is not None else -1]
    )
    padded = sketch.node("Add", variance, sketch.weight("eps", 1e-6), name="padded", shape=mean_shape)
    root = sketch.node("Sqrt", padded, name="root", shape=mean_shape)
    ratio = sketch.node("Div", centered, root, name="ratio", shape=shape)
    gamma, beta = sketch.random("gamma", 8), sketch.random("beta", 8)
    scaled = sketch.node("Mul", *((gamma, ratio) if swap else (ratio, gamma)), name="scaled", shape=shape)
    return sketch.node("Add", *((beta, scaled) if swap else (scaled, beta)), name="norm", shape=shape)


@pytest.mark.parametrize("square", ["Pow", "Mul"])
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("shape", [BATCH_SEQ, None])
def test_layer_norm_written_out_is_one_node(square: str, swap: bool, shape: Any) -> None:
    sketch = Sketch()
    x = sketch.input("x", *BATCH_SEQ)
    y = sketch.node("Relu", x, name="relu", shape=shape)
    graph = canonical(sketch, layer_norm(sketch, y, square, swap, shape))
    node = graph.nodes[-1]
    assert ops(graph) == ["Relu", "LayerNormalization"]
    assert (node.inputs, node.outputs) == (("relu", "gamma", "beta"), ("norm",))
    assert node.attributes["axis"] == -1
    assert node.attributes["epsilon"] == pytest.approx(1e-6)
    assert set(node.parts) == {"mean", "centered", "squared", "variance", "padded", "root", "ratio", "scaled", "norm"}


@pytest.mark.parametrize("tapped", ["mean", "centered", "ratio", "scaled"])
def test_a_layer_norm_that_is_tapped_stays_written_out(tapped: str) -> None:
    sketch = Sketch()
    norm = layer_norm(sketch, sketch.input("x", *BATCH_SEQ))
    assert "LayerNormalization" not in ops(canonical(sketch, norm, tapped))


def test_a_mean_over_other_axes_is_no_layer_norm() -> None:
    sketch = Sketch()
    x = sketch.input("x", "N", 5, 8)
    y = layer_norm(sketch, x)
    sketch.values["axes"] = np.array([1])
    assert "LayerNormalization" not in ops(canonical(sketch, y))


def test_a_mean_over_everything_of_an_unknown_tensor_is_left_alone() -> None:
    sketch = Sketch()
    x = sketch.input("x", *BATCH_SEQ)
    y = sketch.node("Mystery", x, name="m", shape=None)
    norm = layer_norm(sketch, y, shape=None)
    raw = sketch.graph(norm)
    nodes = tuple(Node(n.name, n.op, n.inputs[:1], n.outputs, {}) if n.op == "ReduceMean" else n for n in raw.nodes)
    graph = canonicalize(Graph(nodes, raw.inputs, raw.outputs, raw.tensors, raw.weights))
    assert "LayerNormalization" not in ops(graph)


# --- activations ----------------------------------------------------------------------------------------------------


def gelu_erf(sketch: Sketch, x: str, variant: str) -> str:
    scaled = (
        sketch.node("Mul", x, sketch.weight("rs", math.sqrt(0.5)), name="scaled", shape=BATCH_SEQ)
        if "mul" in variant
        else sketch.node("Div", x, sketch.weight("s", math.sqrt(2)), name="scaled", shape=BATCH_SEQ)
    )
    erf = sketch.node("Erf", scaled, name="erf", shape=BATCH_SEQ)
    gate = sketch.node("Add", erf, sketch.weight("one", 1.0), name="gate", shape=BATCH_SEQ)
    half = sketch.weight("half", 0.5)
    if "half first" in variant:
        product = sketch.node("Mul", x, half, name="halved", shape=BATCH_SEQ)
        return sketch.node("Mul", gate, product, name="gelu", shape=BATCH_SEQ)
    product = sketch.node("Mul", x, gate, name="product", shape=BATCH_SEQ)
    return sketch.node("Mul", half, product, name="gelu", shape=BATCH_SEQ)


@pytest.mark.parametrize("variant", ["div", "mul", "div half first", "mul half first"])
def test_gelu_by_erf(variant: str) -> None:
    sketch = Sketch()
    graph = canonical(sketch, gelu_erf(sketch, sketch.input("x", *BATCH_SEQ), variant))
    node = only(graph)
    assert (node.op, node.inputs, node.outputs) == ("Gelu", ("x",), ("gelu",))
    assert dict(node.attributes) == {"approximate": "none"}
    assert len(node.parts) == 5


def gelu_tanh(sketch: Sketch, x: str, cube: str) -> str:
    if cube == "Pow":
        third = sketch.node("Pow", x, sketch.weight("three", 3.0), name="cube", shape=BATCH_SEQ)
    else:
        square = sketch.node("Mul", x, x, name="square", shape=BATCH_SEQ)
        third = sketch.node("Mul", x, square, name="cube", shape=BATCH_SEQ)
    small = sketch.node("Mul", third, sketch.weight("c", 0.044715), name="small", shape=BATCH_SEQ)
    inner = sketch.node("Add", x, small, name="inner", shape=BATCH_SEQ)
    scaled = sketch.node("Mul", inner, sketch.weight("root", math.sqrt(2 / math.pi)), name="scaled", shape=BATCH_SEQ)
    tanh = sketch.node("Tanh", scaled, name="tanh", shape=BATCH_SEQ)
    gate = sketch.node("Add", sketch.weight("one", 1.0), tanh, name="gate", shape=BATCH_SEQ)
    half = sketch.node("Mul", x, sketch.weight("half", 0.5), name="halved", shape=BATCH_SEQ)
    return sketch.node("Mul", half, gate, name="gelu", shape=BATCH_SEQ)


@pytest.mark.parametrize("cube", ["Pow", "Mul"])
def test_gelu_by_tanh(cube: str) -> None:
    sketch = Sketch()
    node = only(canonical(sketch, gelu_tanh(sketch, sketch.input("x", *BATCH_SEQ), cube)))
    assert (node.op, node.inputs, dict(node.attributes)) == ("Gelu", ("x",), {"approximate": "tanh"})


@pytest.mark.parametrize(("name", "value"), [("half", 0.4), ("one", 2.0), ("c", 0.05), ("root", 0.5), ("three", 2.0)])
def test_other_constants_make_no_gelu(name: str, value: float) -> None:
    sketch = Sketch()
    y = gelu_tanh(sketch, sketch.input("x", *BATCH_SEQ), "Pow")
    sketch.values[name] = np.float32(value)
    assert "Gelu" not in ops(canonical(sketch, y))


@pytest.mark.parametrize("tapped", ["gate", "halved", "tanh"])
def test_a_gelu_that_is_tapped_stays_written_out(tapped: str) -> None:
    sketch = Sketch()
    y = gelu_tanh(sketch, sketch.input("x", *BATCH_SEQ), "Pow")
    assert "Gelu" not in ops(canonical(sketch, y, tapped))


@pytest.mark.parametrize("gate_first", [False, True])
def test_swish(gate_first: bool) -> None:
    sketch = Sketch()
    x = sketch.input("x", *IMAGE)
    gate = sketch.node("Sigmoid", x, name="gate", shape=IMAGE)
    graph = canonical(sketch, sketch.node("Mul", *((gate, x) if gate_first else (x, gate)), name="swish", shape=IMAGE))
    assert (only(graph).op, only(graph).inputs) == ("Swish", ("x",))


def test_a_gate_of_another_tensor_is_no_swish() -> None:
    sketch = Sketch()
    x, y = sketch.input("x", *IMAGE), sketch.input("y", *IMAGE)
    gate = sketch.node("Sigmoid", y, name="gate", shape=IMAGE)
    assert ops(canonical(sketch, sketch.node("Mul", x, gate, name="m", shape=IMAGE))) == ["Sigmoid", "Mul"]


def hard_swish(sketch: Sketch, x: str, variant: str) -> str:
    if variant == "HardSigmoid":
        gate = sketch.node("HardSigmoid", x, name="gate", shape=IMAGE, alpha=1 / 6, beta=0.5)
        return sketch.node("Mul", x, gate, name="hs", shape=IMAGE)
    moved = sketch.node("Add", x, sketch.weight("three", 3.0), name="moved", shape=IMAGE)
    gate = sketch.node("Clip", moved, sketch.weight("low", 0.0), sketch.weight("high", 6.0), name="gate", shape=IMAGE)
    if variant == "divided gate":
        gate = sketch.node("Div", gate, sketch.weight("six", 6.0), name="sixth", shape=IMAGE)
        return sketch.node("Mul", x, gate, name="hs", shape=IMAGE)
    product = sketch.node("Mul", x, gate, name="product", shape=IMAGE)
    if variant == "multiplied product":
        return sketch.node("Mul", product, sketch.weight("sixth", 1 / 6), name="hs", shape=IMAGE)
    return sketch.node("Div", product, sketch.weight("six", 6.0), name="hs", shape=IMAGE)


@pytest.mark.parametrize("variant", ["HardSigmoid", "divided gate", "multiplied product", "divided product"])
def test_hard_swish(variant: str) -> None:
    sketch = Sketch()
    node = only(canonical(sketch, hard_swish(sketch, sketch.input("x", *IMAGE), variant)))
    assert (node.op, node.inputs, node.outputs, dict(node.attributes)) == ("HardSwish", ("x",), ("hs",), {})


@pytest.mark.parametrize(("name", "value"), [("three", 2.0), ("high", 5.0), ("low", -1.0), ("six", 5.0)])
def test_other_constants_make_no_hard_swish(name: str, value: float) -> None:
    sketch = Sketch()
    y = hard_swish(sketch, sketch.input("x", *IMAGE), "divided product")
    sketch.values[name] = np.float32(value)
    assert "HardSwish" not in ops(canonical(sketch, y))


def test_a_hard_sigmoid_of_other_slope_makes_no_hard_swish() -> None:
    sketch = Sketch()
    x = sketch.input("x", *IMAGE)
    gate = sketch.node("HardSigmoid", x, name="gate", shape=IMAGE)
    assert ops(canonical(sketch, sketch.node("Mul", x, gate, name="m", shape=IMAGE))) == ["HardSigmoid", "Mul"]


# --- pooling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["ReduceMean", "AveragePool", "GlobalAveragePool"])
@pytest.mark.parametrize("flatten", [True, False])
def test_means_over_space_are_global_pooling(pool: str, flatten: bool) -> None:
    sketch = Sketch()
    x = sketch.input("x", *IMAGE)
    attributes: dict[str, Any] = {}
    operands: list[str] = []
    if pool == "AveragePool":
        attributes = {"kernel_shape": [8, 8]}
    elif pool == "ReduceMean":
        operands = [sketch.weight("axes", [-2, -1], np.int64)]
    y = sketch.node(pool, x, *operands, name="pool", shape=("N", 3, 1, 1), **attributes)
    if flatten:
        y = sketch.node("Flatten", y, name="flat", shape=("N", 3))
    node = only(canonical(sketch, y))
    assert (node.op, node.inputs, node.outputs) == ("GlobalAveragePool", ("x",), (y,))
    assert dict(node.attributes) == {"keepdims": 0 if flatten else 1}


def test_a_mean_without_its_axes_is_the_flat_one() -> None:
    sketch = Sketch()
    x = sketch.input("x", *IMAGE)
    node = only(canonical(sketch, sketch.node("ReduceMean", x, name="pool", shape=("N", 3), axes=[2, 3], keepdims=0)))
    assert (node.op, dict(node.attributes)) == ("GlobalAveragePool", {"keepdims": 0})


@pytest.mark.parametrize(
    ("op", "shape", "attributes"),
    [
        ("AveragePool", IMAGE, {"kernel_shape": [4, 4]}),
        ("AveragePool", IMAGE, {"kernel_shape": [8, 8], "pads": [1, 1, 1, 1]}),
        ("ReduceMean", IMAGE, {"axes": [1]}),
        ("ReduceMean", IMAGE, {"axes": [1, 2, 3]}),
        ("ReduceMean", BATCH_SEQ, {"axes": [2]}),
        ("ReduceMax", IMAGE, {"axes": [2, 3]}),
    ],
)
def test_other_means_stay(op: str, shape: tuple[Any, ...], attributes: Mapping[str, Any]) -> None:
    sketch = Sketch()
    x = sketch.input("x", *shape)
    assert ops(canonical(sketch, sketch.node(op, x, name="p", shape=None, **attributes))) == [op]


def test_a_pooled_tensor_that_is_read_twice_keeps_its_flattening() -> None:
    sketch = Sketch()
    x = sketch.input("x", *IMAGE)
    pool = sketch.node("GlobalAveragePool", x, name="pool", shape=("N", 3, 1, 1))
    flat = sketch.node("Flatten", pool, name="flat", shape=("N", 3))
    assert ops(canonical(sketch, flat, pool)) == ["GlobalAveragePool", "Reshape"]


# --- attention ------------------------------------------------------------------------------------------------------


def attention(sketch: Sketch, places: str) -> str:
    """Scores whose scale 1/8 is on q, on k, on both or on the product."""
    q, k = sketch.input("q", "N", 2, 5, 8), sketch.input("k", "N", 2, 8, 5)
    if "q" in places:
        q = sketch.node(
            "Mul",
            q,
            sketch.weight("on_q", 0.125 if places == "q" else math.sqrt(0.125)),
            name="qs",
            shape=("N", 2, 5, 8),
        )
    if "k" in places:
        k = sketch.node("Div", k, sketch.weight("on_k", math.sqrt(8.0)), name="ks", shape=("N", 2, 8, 5))
    scores = sketch.node("MatMul", q, k, name="scores", shape=("N", 2, 5, 5))
    for index in range(places.count("p")):
        value = 8.0 if places == "p" else math.sqrt(8.0)
        scores = sketch.node(
            "Div", scores, sketch.weight(f"on_p{index}", value), name=f"scaled{index}", shape=("N", 2, 5, 5)
        )
    return sketch.node("Softmax", scores, name="softmax", shape=("N", 2, 5, 5))


@pytest.mark.parametrize("places", ["q", "qk", "p", "pp"])
def test_the_scale_of_attention_belongs_to_the_product(places: str) -> None:
    sketch = Sketch()
    graph = canonical(sketch, attention(sketch, places))
    assert ops(graph) == ["MatMul", "Softmax"]
    product = graph.nodes[0]
    assert product.inputs == ("q", "k")
    assert product.attributes["scale"] == pytest.approx(0.125, rel=1e-6)
    assert not graph.weights


def test_scales_in_a_row_are_one() -> None:
    sketch = Sketch()
    q, k = sketch.input("q", "N", 5, 8), sketch.input("k", "N", 8, 5)
    for index in range(3):
        q = sketch.node("Mul", q, sketch.weight(f"w{index}", 0.5), name=f"q{index}", shape=("N", 5, 8))
    graph = canonical(sketch, sketch.node("MatMul", q, k, name="scores", shape=("N", 5, 5)))
    assert dict(only(graph).attributes) == {"scale": 0.125}


def test_a_scaled_operand_that_others_read_keeps_its_scale() -> None:
    sketch = Sketch()
    scores = attention(sketch, "q")
    graph = canonical(sketch, scores, "qs")
    assert ops(graph) == ["Mul", "MatMul", "Softmax"]
    assert "scale" not in graph.node("scores").attributes


# --- names and channels ---------------------------------------------------------------------------------------------


def test_surviving_names_are_kept_and_none_invented() -> None:
    sketch = Sketch()
    x = sketch.input("x", *IMAGE)
    y = sketch.node("Identity", hard_swish(sketch, x, "divided gate"), name="same", shape=IMAGE)
    raw = sketch.graph(y)
    graph = canonicalize(raw)
    assert set(graph.tensors) <= set(raw.tensors)
    assert {node.name for node in graph.nodes} <= {node.name for node in raw.nodes}
    assert {part for node in graph.nodes for part in node.parts} <= {node.name for node in raw.nodes}


def test_channels_are_told_by_the_ops_and_carried_on() -> None:
    sketch = Sketch()
    x = sketch.input("x", *IMAGE)
    y = sketch.node("Relu", x, name="before", shape=IMAGE)
    y = sketch.node("Conv", y, sketch.random("w", 3, 3, 1, 1), name="conv", shape=IMAGE)
    y = sketch.node("Add", y, sketch.node("Abs", y, name="abs", shape=IMAGE), name="sum", shape=IMAGE)
    flat = sketch.node("Reshape", y, name="flat", shape=("N", 192))
    seq = sketch.node("Reshape", y, name="seq", shape=("N", 8, 24))
    graph = canonical(sketch, sketch.node("MatMul", flat, sketch.random("m", 192, 4), name="fc", shape=("N", 4)), seq)
    axes = {name: info.channel_axis for name, info in graph.tensors.items()}
    assert axes == {"x": 1, "before": 1, "conv": 1, "abs": 1, "sum": 1, "flat": 1, "fc": 1, "seq": None}
    sketch = Sketch()
    x = sketch.input("x", *BATCH_SEQ)
    y = sketch.node("MatMul", x, sketch.random("m", 8, 4), name="fc", shape=("N", 5, 4))
    graph = canonical(sketch, sketch.node("Relu", y, name="relu", shape=("N", 5, 4)))
    assert {info.channel_axis for info in graph.tensors.values()} == {2}
