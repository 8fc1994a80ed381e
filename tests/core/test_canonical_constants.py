"""Constants in the canonical form: tied, viewed, stacked and transposed ones."""

from __future__ import annotations

import numpy as np
import pytest
from canonical_form import IMAGE, canonical, only, weights_of
from sketch import Sketch, ops

from isobit.testing.interpreter import compute


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
    np.testing.assert_allclose(compute(node, [data, value])[0], expected, rtol=1e-12)


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
    node = only(graph)
    assert node.inputs[:4] == ("x", "w", "r", "b")
    assert node.attributes["activations"] == ("Sigmoid", "Tanh", "Tanh")
    assert [graph.weights[name].shape for name in "wr"] == [(16, 3), (16, 4)]
    read = weights_of(graph, sketch)
    for index, half in ((3, sketch.values["b"][0, :16]), (8, sketch.values["b"][0, 16:])):
        np.testing.assert_array_equal(read(node.inputs[index] or ""), half)


def test_a_bias_that_is_put_together_keeps_both_names() -> None:
    sketch = Sketch()
    x = sketch.input("x", 5, "N", 3)
    bias = sketch.node(
        "Concat", sketch.random("b_ih", 1, 16), sketch.random("b_hh", 1, 16), name="b", shape=(1, 32), axis=1
    )
    operands = [sketch.random("w", 1, 16, 3), sketch.random("r", 1, 16, 4), bias]
    graph = canonical(sketch, sketch.node("LSTM", x, *operands, name="lstm", shape=(5, 1, "N", 4)))
    node = only(graph)
    assert (node.inputs[3], node.inputs[8]) == ("b_ih", "b_hh")
    assert node.parts == ("b", "lstm")
    assert [graph.weights[name].shape for name in ("b_ih", "b_hh")] == [(16,), (16,)]
    assert node.attributes["hidden_size"] == 4


def test_an_initial_state_of_zeros_is_none() -> None:
    sketch = Sketch()
    x = sketch.input("x", 5, "N", 3)
    shape = sketch.node("Shape", x, name="shape", shape=(3,), dtype="int64")
    zeros = sketch.node("Expand", sketch.weight("zero", 0.0), shape, name="zeros", shape=(2, "N", 4))
    state = sketch.input("h", 2, "N", 4)
    states = []
    for number, source in enumerate((state, zeros)):
        bounds = [sketch.weight(f"{n}{number}", [n], np.int64) for n in (0, 1)]
        states.append(
            sketch.node("Slice", source, *bounds, bounds[0], name=f"state{number}", shape=(1, "N", 4), dtype="float32")
        )
    operands = [sketch.random("w", 1, 16, 3), sketch.random("r", 1, 16, 4), None, None]
    lstm = sketch.node("LSTM", x, *operands, *states, name="lstm", shape=(5, 1, "N", 4))
    graph = canonical(sketch, lstm)
    assert [node.op for node in graph.nodes] == ["Slice", "LSTM"]
    assert graph.node("lstm").inputs == ("x", "w", "r", None, None, "state0")
