"""Operations written out in parts become the one node they mean; names and channels of what is left."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from canonical_form import BATCH_SEQ, IMAGE, canonical, only
from sketch import Sketch, ops

from isobit.canonical import canonicalize
from isobit.graph import Graph, Node

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


@pytest.mark.parametrize("tapped", ["mean", "centered"])
def test_a_layer_norm_that_is_tapped_inside_stays_written_out(tapped: str) -> None:
    sketch = Sketch()
    norm = layer_norm(sketch, sketch.input("x", *BATCH_SEQ))
    assert "LayerNormalization" not in ops(canonical(sketch, norm, tapped))


@pytest.mark.parametrize(("tapped", "left"), [("ratio", ["Mul", "Add"]), ("scaled", ["Add"])])
def test_what_follows_the_tap_of_a_layer_norm_stays_beside_it(tapped: str, left: list[str]) -> None:
    sketch = Sketch()
    norm = layer_norm(sketch, sketch.input("x", *BATCH_SEQ))
    graph = canonical(sketch, norm, tapped)
    assert ops(graph) == ["LayerNormalization", *left]
    assert graph.outputs["out1"] == graph.nodes[0].outputs[0] == tapped


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


# --- root mean square norm ------------------------------------------------------------------------------------------


def rms_norm(sketch: Sketch, x: str, square: str = "Pow", divide: str = "Mul", swap: bool = False) -> str:
    """A root mean square norm in elementary ops."""
    scalars = (*BATCH_SEQ[:-1], 1)
    operands = (x, sketch.weight("two", 2.0)) if square == "Pow" else (x, x)
    squared = sketch.node(square, *operands, name="squared", shape=BATCH_SEQ)
    mean = sketch.node("ReduceMean", squared, name="mean", shape=scalars, axes=[-1])
    padded = sketch.node("Add", mean, sketch.weight("eps", 1e-6), name="padded", shape=scalars)
    root = sketch.node("Sqrt", padded, name="root", shape=scalars)
    if divide == "Mul":
        root = sketch.node("Reciprocal", root, name="inverse", shape=scalars)
    ratio = sketch.node(divide, *((root, x) if swap and divide == "Mul" else (x, root)), name="ratio", shape=BATCH_SEQ)
    gamma = sketch.random("gamma", 8)
    return sketch.node("Mul", *((gamma, ratio) if swap else (ratio, gamma)), name="norm", shape=BATCH_SEQ)


@pytest.mark.parametrize("square", ["Pow", "Mul"])
@pytest.mark.parametrize("divide", ["Mul", "Div"])
@pytest.mark.parametrize("swap", [False, True])
def test_rms_norm_written_out_is_one_node(square: str, divide: str, swap: bool) -> None:
    sketch = Sketch()
    x = sketch.input("x", *BATCH_SEQ)
    graph = canonical(sketch, rms_norm(sketch, x, square, divide, swap))
    (node,) = graph.nodes
    assert (node.op, node.inputs, node.outputs) == ("RMSNormalization", ("x", "gamma"), ("norm",))
    assert node.attributes["axis"] == -1
    assert node.attributes["epsilon"] == pytest.approx(1e-6)
    assert set(node.parts) - {"inverse"} == {"squared", "mean", "padded", "root", "ratio", "norm"}


def test_the_scale_of_an_rms_norm_may_be_computed() -> None:
    """Gemma multiplies by one plus the weight."""
    sketch = Sketch()
    x = sketch.input("x", *BATCH_SEQ)
    norm = rms_norm(sketch, x)
    scale = sketch.node("Add", "gamma", sketch.weight("one", 1.0), name="scale", shape=(8,))
    nodes = sketch.graph(norm).nodes
    raw = sketch.graph(norm)
    last = Node("norm", "Mul", ("ratio", scale), ("norm",), {}, ("norm",))
    reordered = (nodes[-1], *(node for node in nodes[:-1] if node.name != "norm"), last)
    graph = canonicalize(Graph(reordered, raw.inputs, raw.outputs, raw.tensors, raw.weights))
    assert ops(graph) == ["Add", "RMSNormalization"]
    assert graph.nodes[-1].inputs == ("x", "scale")


@pytest.mark.parametrize("tapped", ["squared", "mean", "inverse"])
def test_an_rms_norm_that_is_tapped_inside_stays_written_out(tapped: str) -> None:
    sketch = Sketch()
    norm = rms_norm(sketch, sketch.input("x", *BATCH_SEQ))
    assert "RMSNormalization" not in ops(canonical(sketch, norm, tapped))


def test_the_scale_behind_the_tap_of_an_rms_norm_stays_beside_it() -> None:
    sketch = Sketch()
    norm = rms_norm(sketch, sketch.input("x", *BATCH_SEQ))
    assert ops(canonical(sketch, norm, "ratio")) == ["RMSNormalization", "Mul"]


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
