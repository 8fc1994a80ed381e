"""Where a tensor exists in float, operations in float read that: grids only for the readers that run on integers."""

from __future__ import annotations

import numpy as np
import pytest
from registries import own_registry, rounds_all
from sketch import Sketch

from isobit.canonical import canonicalize
from isobit.graph import Graph, Input, Shape, Site, Tensor
from isobit.placement import Plan, QuantConfig, place

TOKENS = ("N", 7, 4)
TARGETS = {name: own_registry().target(name) for name in ("default", "onnxruntime-cpu", "onnxruntime-cpu-transformer")}
TRANSFORMER = TARGETS["onnxruntime-cpu-transformer"]


def linear(sketch: Sketch, x: str, name: str, shape: Shape = TOKENS) -> str:
    return sketch.node("MatMul", x, sketch.random(f"{name}.w", 4, 4), name=name, shape=shape)


def layer_norm(sketch: Sketch, x: str, name: str) -> str:
    operands = sketch.random(f"{name}.scale", 4), sketch.random(f"{name}.shift", 4)
    return sketch.node("LayerNormalization", x, *operands, name=name, shape=TOKENS, axis=-1, epsilon=1e-5)


def block(*outputs: str) -> Graph:
    """A feed-forward block behind a layer norm: ``norm -> first -> gelu -> second``, and ``norm + second``."""
    sketch = Sketch()
    norm = layer_norm(sketch, sketch.input("x", *TOKENS), "norm")
    hidden = sketch.node("Gelu", linear(sketch, norm, "first"), name="gelu", shape=TOKENS)
    sketch.node("Add", linear(sketch, hidden, "second"), norm, name="sum", shape=TOKENS)
    return canonicalize(sketch.graph("sum", *outputs))


def activations(plan: Plan) -> set[Site]:
    return {placement.site for placement in plan.of_kind("activation")}


def test_products_read_integers_and_the_residual_stream_stays_in_float() -> None:
    plan = place(block(), TRANSFORMER)
    assert activations(plan) == {Input("first", 0), Tensor("gelu")}
    assert plan.placements[Input("first", 0)].tensor == "norm"
    assert plan.floats["norm"] == "rounded for first[0] alone; the others read it in float"
    assert plan.floats["second"] == "Linear leaves it in float for its readers"
    assert plan.floats["sum"] == "target 'onnxruntime-cpu-transformer' runs Add in float"


def test_a_target_whose_kernels_end_in_integers_rounds_every_result() -> None:
    plan = place(block(), rounds_all("onnxruntime-cpu"))
    assert activations(plan) == {Tensor(name) for name in ("norm", "first", "gelu", "second", "sum")}


def test_an_output_of_the_model_is_a_reader_in_float() -> None:
    plan = place(block("gelu", "first"), TRANSFORMER)
    assert activations(plan) == {Input("first", 0), Input("second", 0)}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_an_excluded_reader_of_an_input_takes_it_as_it_is(target) -> None:
    sketch = Sketch()
    x = sketch.input("x", *TOKENS)
    excluded = sketch.node("Abs", x, name="abs", shape=TOKENS)
    graph = canonicalize(sketch.graph(linear(sketch, x, "first"), excluded))
    assert Input("first", 0) in activations(place(graph, target, QuantConfig(exclude="abs")))
    assert Tensor("x") not in activations(place(graph, target, QuantConfig(exclude="abs")))


def test_a_format_asked_for_a_tensor_is_for_all_its_readers() -> None:
    plan = place(block(), TRANSFORMER, QuantConfig(overrides={"norm": "uint16"}))
    assert activations(plan) == {Tensor("norm"), Tensor("gelu")}
    assert plan.placements[Tensor("norm")].spec.bits == 16


def test_what_only_moves_values_is_followed_to_the_product() -> None:
    sketch = Sketch()
    norm = layer_norm(sketch, sketch.input("x", *TOKENS), "norm")
    query = linear(sketch, norm, "query")
    turned = sketch.node("Transpose", query, name="turned", shape=("N", 4, 7), perm=(0, 2, 1))
    scores = sketch.node("MatMul", query, turned, name="scores", shape=("N", 7, 7))
    left = sketch.node("Transpose", norm, name="left", shape=("N", 4, 7), perm=(0, 2, 1))
    graph = canonicalize(sketch.graph(sketch.node("Exp", scores, name="exp", shape=("N", 7, 7)), left))
    plan = place(graph, TRANSFORMER)
    assert activations(plan) == {Input("query", 0), Tensor("query"), Tensor("turned")}
    assert [p.simulated for p in plan.of_kind("activation")].count(False) == 1  # turned holds values of query
    assert plan.floats["left"] == "Transpose leaves it in float for its readers"


def test_a_view_between_a_float_tensor_and_one_of_its_readers() -> None:
    sketch = Sketch()
    norm = layer_norm(sketch, sketch.input("x", *TOKENS), "norm")
    first = sketch.node("Slice", norm, sketch.weight("starts", [0], np.int64), sketch.weight("ends", [1], np.int64),
                        sketch.weight("axes", [1], np.int64), name="first", shape=("N", 1, 4))  # fmt: skip
    graph = canonicalize(sketch.graph(norm, linear(sketch, first, "pooled", ("N", 1, 4))))
    plan = place(graph, TRANSFORMER)
    assert activations(plan) == {Input("first", 0), Tensor("first")}
    assert not plan.placements[Tensor("first")].simulated


def test_a_pattern_reaches_no_tensor_inside_a_fused_chain() -> None:
    sketch = Sketch()
    x = sketch.input("x", "N", 4, 6, 6)
    y = sketch.node("Conv", x, sketch.random("conv.w", 4, 4, 1, 1), name="conv", shape=("N", 4, 6, 6))
    graph = canonicalize(sketch.graph(sketch.node("Relu", y, name="conv.relu", shape=("N", 4, 6, 6))))
    plan = place(graph, TARGETS["default"], QuantConfig(overrides={"conv*": "int8"}))
    assert activations(plan) == {Tensor("x"), Tensor("conv.relu")}
