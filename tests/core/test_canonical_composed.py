"""What a framework writes in elementary steps is one node where a backend runs the canonical graph itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from sketch import Sketch, ops

from isobit.canonical import canonicalize
from isobit.canonical.products import Product
from isobit.graph import Graph, to_canonical
from isobit.testing.interpreter import outputs

IMAGE, ROWS = ("N", 6, 4, 4), ("N", 5, 6)
RNG = np.random.default_rng(0)


def value_of(graph: Graph, sketch: Sketch, feeds: Mapping[str, Any]) -> np.ndarray:
    """The output of a canonical graph in the NumPy interpreter."""
    read = lambda name: to_canonical(sketch.values[graph.weights[name].source or name], graph.weights[name].layout)  # noqa: E731
    (output,) = outputs(graph, read, feeds).values()
    return output


def composed(sketch: Sketch, *results: str) -> Graph:
    """The graph with `composed`, which a second time changes nothing, nor does a plain pass."""
    graph = canonicalize(sketch.graph(*results), composed=True)
    for again in (canonicalize(graph), canonicalize(graph, composed=True)):
        assert [(n.name, n.op, n.inputs) for n in again.nodes] == [(n.name, n.op, n.inputs) for n in graph.nodes]
    return graph


def batch_norm(sketch: Sketch, x: str, way: str, shape: Any = IMAGE, axis: int = 1) -> str:
    """A batch norm with fixed statistics, written in one of several ways."""
    rank, channels = len(shape), shape[axis]
    spread = tuple(channels if place == axis else 1 for place in range(rank))
    vector = (channels,)

    def constant(name: str, values: Any) -> str:
        sketch.weight(name, values)
        return name if way == "late" else wide(name)

    def wide(name: str) -> str:
        made = sketch.node("Reshape", name, name=f"{name}/wide", shape=spread[1:])
        return sketch.node("Reshape", made, name=f"{name}/wider", shape=spread)

    eps = sketch.weight("eps", 1e-3)
    mean = sketch.weight("mean", RNG.standard_normal(channels))
    scale, variance = constant("scale", RNG.uniform(0.5, 1.5, channels)), constant("var", RNG.uniform(0.5, 2, channels))
    inner = vector if way == "late" else spread
    shift = sketch.weight("shift", RNG.standard_normal(channels))
    difference = sketch.node("Sub", x, wide(mean), name="difference", shape=shape)
    root = sketch.node("Sqrt", sketch.node("Add", variance, eps, name="padded", shape=inner), name="root", shape=inner)
    if way == "divided":
        ratio = sketch.node("Div", difference, root, name="ratio", shape=shape)
        scaled = sketch.node("Mul", scale, ratio, name="scaled", shape=shape)
    else:
        inverse = sketch.node("Reciprocal", root, name="inverse", shape=inner)
        factor = sketch.node("Mul", inverse, scale, name="factor", shape=inner)
        factor = wide(factor) if way == "late" else factor
        scaled = sketch.node("Mul", difference, factor, name="scaled", shape=shape)
    return sketch.node("Add", scaled, wide(shift), name="norm", shape=shape)


@pytest.mark.parametrize("way", ["divided", "multiplied", "late"])
def test_batch_norm(way: str) -> None:
    sketch = Sketch()
    x = sketch.input("x", *IMAGE)
    graph = composed(sketch, batch_norm(sketch, x, way))
    assert ops(graph) == ["BatchNormalization"]
    assert graph.nodes[0].inputs == ("x", "scale", "shift", "mean", "var")
    assert {graph.weights[name].shape for name in graph.nodes[0].inputs[1:] if name} == {(6,)}
    feeds = {"x": RNG.standard_normal((2, 6, 4, 4)).astype(np.float32)}
    s, b, m, v = (sketch.values[name].reshape(6, 1, 1).astype(np.float64) for name in ("scale", "shift", "mean", "var"))
    expected = (feeds["x"] - m) / np.sqrt(v + 1e-3) * s + b
    np.testing.assert_allclose(value_of(graph, sketch, feeds), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("way", ["divided", "multiplied", "late"])
def test_a_norm_over_another_axis_is_none(way: str) -> None:
    sketch = Sketch()
    shape = ("N", 6, 6, 6)
    x = sketch.input("x", *shape)
    assert "BatchNormalization" not in ops(composed(sketch, batch_norm(sketch, x, way, shape, axis=3)))


def test_a_native_graph_keeps_its_steps() -> None:
    sketch = Sketch()
    x = sketch.input("x", *IMAGE)
    assert "BatchNormalization" not in ops(canonicalize(sketch.graph(batch_norm(sketch, x, "divided"))))


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1, 1), (8,), (8, 1)])
def test_a_constant_a_channel_behind_a_convolution_is_its_bias(shape: tuple[int, ...]) -> None:
    sketch = Sketch()
    x = sketch.input("x", "N", 6, 10, 10)
    kernel, bias = sketch.random("kernel", 8, 6, 3, 3), sketch.random("bias", *shape)
    y = sketch.node("Conv", x, kernel, name="conv", shape=("N", 8, 8, 8))
    graph = composed(sketch, sketch.node("Add", bias, y, name="sum", shape=("N", 8, 8, 8)))
    if len(shape) < 3:  # along another axis
        assert ops(graph) == ["Conv", "Add"]
        return
    assert ops(graph) == ["Conv"]
    assert graph.nodes[0].inputs == ("x", "kernel", "bias")
    assert graph.weights["bias"].shape == (8,)


def test_a_bias_that_a_tap_shows_without_stays_a_sum() -> None:
    sketch = Sketch()
    x = sketch.input("x", *IMAGE)
    y = sketch.node("Conv", x, sketch.random("kernel", 8, 6, 3, 3), name="conv", shape=("N", 8, 2, 2))
    total = sketch.node("Add", y, sketch.random("bias", 8, 1, 1), name="sum", shape=("N", 8, 2, 2))
    assert ops(composed(sketch, total, y)) == ["Conv", "Add"]


def softmax(sketch: Sketch, x: str, axes: tuple[int, int] = (2, 2)) -> str:
    """Softmax in steps that reduce without and with kept axes."""
    largest = sketch.node("ReduceMax", x, name="max", shape=("N", 5), axes=[axes[0]], keepdims=0)
    with_axis = sketch.node("Reshape", largest, name="max/kept", shape=("N", 5, 1))
    raised = sketch.node("Exp", sketch.node("Sub", x, with_axis, name="sub", shape=ROWS), name="exp", shape=ROWS)
    total = sketch.node("ReduceSum", raised, name="sum", shape=("N", 5, 1), axes=[axes[1]], keepdims=1)
    return sketch.node("Div", raised, total, name="softmax", shape=ROWS)


def test_softmax() -> None:
    sketch = Sketch()
    graph = composed(sketch, softmax(sketch, sketch.input("x", *ROWS)))
    assert ops(graph) == ["Softmax"]
    feeds = {"x": RNG.standard_normal((2, 5, 6)).astype(np.float32)}
    raised = np.exp(feeds["x"].astype(np.float64))
    expected = raised / raised.sum(-1, keepdims=True)
    np.testing.assert_allclose(value_of(graph, sketch, feeds), expected, rtol=1e-6)


def test_a_sum_over_another_axis_makes_no_softmax() -> None:
    sketch = Sketch()
    assert "Softmax" not in ops(composed(sketch, softmax(sketch, sketch.input("x", *ROWS), axes=(2, 1))))


@pytest.mark.parametrize(("terms", "axes", "last_op"), [(6, [2], "ReduceMean"), (5, [2], "Div"), (2, [0, 2], "Div")])
def test_a_sum_over_the_number_of_its_terms_is_a_mean(terms: float, axes: list[int], last_op: str) -> None:
    """The size of the batch is no number."""
    sketch = Sketch()
    total = sketch.node("ReduceSum", sketch.input("x", *ROWS), name="sum", shape=("N", 5), axes=axes, keepdims=0)
    ratio = sketch.node("Div", total, sketch.weight("n", float(terms)), name="mean", shape=("N", 5))
    assert ops(composed(sketch, ratio))[-1] == last_op


@pytest.mark.parametrize("order", [("Max", "Min"), ("Max",), ("Min",)])
def test_limits(order: tuple[str, ...]) -> None:
    sketch = Sketch()
    y = sketch.input("x", *ROWS)
    for op in order:
        y = sketch.node(op, sketch.weight(op, {"Max": 0.0, "Min": 6.0}[op]), y, name=op.lower(), shape=ROWS)
    graph = composed(sketch, y)
    assert ops(graph) == [{2: "Clip", 1: {"Max": "Relu", "Min": "Min"}[order[0]]}[len(order)]]
    if len(order) == 2:
        assert graph.nodes[0].attributes == {"min": 0.0, "max": 6.0}


def test_what_no_output_needs_goes() -> None:
    sketch = Sketch()
    x = sketch.input("x", *ROWS)
    y = sketch.node("Relu", x, name="relu", shape=ROWS)
    sketch.node("Mystery", sketch.node("Neg", y, name="neg", shape=ROWS), sketch.random("w", 6), name="m", shape=ROWS)
    graph = composed(sketch, y)
    assert ops(graph) == ["Relu"]
    assert set(graph.tensors) == {"x", "relu"}
    assert not graph.weights


def flax_layer_norm(sketch: Sketch, x: str) -> str:
    """Variance as the mean of squares less the square of the mean, and scale times the inverse first."""
    small = ("N", 5, 1)
    mean = sketch.node("ReduceMean", x, name="mean", shape=small, axes=[-1])
    square = sketch.node(
        "ReduceMean", sketch.node("Mul", x, x, name="xx", shape=ROWS), name="ms", shape=small, axes=[2]
    )
    difference = sketch.node(
        "Sub", square, sketch.node("Mul", mean, mean, name="mm", shape=small), name="d", shape=small
    )
    variance = sketch.node("Max", sketch.weight("zero", 0.0), difference, name="var", shape=small)
    padded = sketch.node("Add", variance, sketch.weight("eps", 1e-5), name="padded", shape=small)
    inverse = sketch.node("Reciprocal", sketch.node("Sqrt", padded, name="r", shape=small), name="i", shape=small)
    factor = sketch.node("Mul", inverse, sketch.random("gamma", 6), name="factor", shape=ROWS)
    scaled = sketch.node("Mul", sketch.node("Sub", x, mean, name="c", shape=ROWS), factor, name="s", shape=ROWS)
    return sketch.node("Add", scaled, sketch.random("beta", 6), name="norm", shape=ROWS)


def test_layer_norm_as_flax_writes_it() -> None:
    sketch = Sketch()
    graph = composed(sketch, flax_layer_norm(sketch, sketch.input("x", *ROWS)))
    assert ops(graph) == ["LayerNormalization"]
    assert graph.nodes[0].inputs == ("x", "gamma", "beta")
    feeds = {"x": RNG.standard_normal((2, 5, 6)).astype(np.float32)}
    x = feeds["x"].astype(np.float64)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    expected = expected * sketch.values["gamma"] + sketch.values["beta"]
    np.testing.assert_allclose(value_of(graph, sketch, feeds), expected, rtol=1e-6, atol=1e-6)


def test_the_factors_of_a_product() -> None:
    """``-(2 * a) / (b / (1 / c)) = -2 * a / (b * c)``."""
    sketch = Sketch()
    a, b, c = (sketch.input(name, *ROWS) for name in "abc")
    doubled = sketch.node("Mul", sketch.weight("two", 2.0), a, name="doubled", shape=ROWS)
    inverse = sketch.node("Reciprocal", c, name="inverse", shape=ROWS)
    below = sketch.node("Div", b, inverse, name="below", shape=ROWS)
    last = sketch.node("Div", sketch.node("Neg", doubled, name="neg", shape=ROWS), below, name="last", shape=ROWS)
    product = Product.of(canonicalize(sketch.graph(sketch.node("Relu", last, name="relu", shape=ROWS))), last)
    assert (product.over, product.under, product.constant) == (["a"], ["b", "c"], -2.0)
