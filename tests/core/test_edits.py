"""Edits: each kind, what it leaves, and refusals that change nothing and name what blocks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy_backend import checked
from sketch import Sketch, ops

from isobit.backend import CheckedModel
from isobit.canonical import canonicalize
from isobit.edits import AddBias, Edit, Insert, Inserted, NewNode, Replace, Replaced, SetWeights, Unshare, plan_edits
from isobit.errors import EditError
from isobit.graph import Input, Tensor
from isobit.testing.networks import NetworkBuilder

IMAGE = ("N", 4, 6, 6)


def network() -> CheckedModel:
    """Two convolutions of one weight, their sum, and a linear layer: 4 channels, 3 outputs."""
    sketch = Sketch()
    x = sketch.input("x", *IMAGE)
    weight = sketch.random("w", 4, 4, 3, 3)
    attributes: dict[str, Any] = {"pads": (1, 1, 1, 1), "group": 1}
    a = sketch.node("Conv", x, weight, sketch.random("a.bias", 4), name="a", shape=IMAGE, **attributes)
    bn = sketch.batch_norm("bn", a, 4, IMAGE)
    b = sketch.node("Conv", bn, weight, name="b", shape=IMAGE, **attributes)
    total = sketch.node("Add", b, bn, name="sum", shape=IMAGE)
    pool = sketch.node("GlobalAveragePool", total, name="pool", shape=("N", 4), keepdims=0)
    fc = sketch.node("Linear", pool, sketch.random("fc.w", 3, 4), sketch.random("fc.b", 3), name="fc", shape=("N", 3))
    return checked(canonicalize(sketch.graph(fc)), sketch.values)


BATCH = {"x": np.random.default_rng(1).standard_normal((2, 4, 6, 6)).astype(np.float32)}


def edited(*edits: Edit) -> CheckedModel:
    model = network()
    model.edit(edits)
    return model


def output(model: CheckedModel) -> np.ndarray:
    (value,) = model.run(BATCH).values()
    return value


def conv1x1(scale: float = 1.0) -> dict[str, np.ndarray]:
    return {"new.w": (np.eye(4) * scale).reshape(4, 4, 1, 1)}


# --- what each edit does --------------------------------------------------------------------------------------------


def test_set_weights() -> None:
    model = network()
    value = model.weight("fc.w") * 2
    model.edit([SetWeights({"fc.w": value.astype(np.float64), "fc.b": np.zeros(3, int)})])
    assert model.weight("fc.w").dtype == model.weight("fc.b").dtype == np.float32
    expected = (output(network()) - network().weight("fc.b")) * 2
    np.testing.assert_allclose(output(model), expected, rtol=1e-5)


def test_set_weights_with_another_shape_moves_the_shapes_behind_it() -> None:
    model = edited(SetWeights({"fc.w": np.ones((7, 4)), "fc.b": np.ones(7)}))
    assert model.graph.tensors["fc"].shape == ("N", 7)
    assert model.graph.weights["fc.w"].shape == (7, 4)
    assert output(model).shape == (2, 7)


def test_set_weights_carries_the_new_small_value_and_keeps_scalars() -> None:
    model = edited(SetWeights({"fc.b": [1, 2, 3]}))
    assert np.array_equal(model.graph.value("fc.b"), [1, 2, 3])  # type: ignore[arg-type]
    sketch = Sketch()
    y = sketch.node("Mul", sketch.input("x", "N", 3), sketch.weight("s", 2.0), name="y", shape=("N", 3))
    plan = plan_edits(sketch.graph(y), [SetWeights({"s": np.float32(3)})], sketch.values.__getitem__)
    assert plan.weights["s"].shape == plan.graph.weights["s"].shape == ()


def test_a_plan_does_not_hold_the_array_it_was_given() -> None:
    value = np.ones(3, np.float32)
    plan = plan_edits(network().graph, [SetWeights({"fc.b": value})], network().weight)
    value[:] = 9
    assert plan.weights["fc.b"].tolist() == [1, 1, 1]


def test_add_bias() -> None:
    model = edited(AddBias("b", np.arange(4)))
    node = model.graph.node("b")
    assert node.inputs == ("bn", "w", "b.bias")
    assert node.attributes == network().graph.node("b").attributes
    assert model.graph.tensors["b"].shape == IMAGE
    extra = network().weight("fc.w") @ np.arange(4)
    np.testing.assert_allclose(output(model), output(network()) + extra, rtol=1e-4, atol=1e-4)


def test_unshare() -> None:
    model = edited(Unshare("w", "b"), SetWeights({"w": np.zeros((4, 4, 3, 3))}))
    assert model.graph.node("a").inputs[1] == "w"
    assert model.graph.node("b").inputs[1] == "w@b"
    np.testing.assert_array_equal(model.weight("w@b"), network().weight("w"))
    np.testing.assert_array_equal(output(edited(Unshare("w", "b"))), output(network()))


def test_replace_by_nothing_splices_out() -> None:
    model = edited(Replace("bn"))
    assert "bn" not in model.graph.tensors
    assert model.graph.node("b").inputs[0] == "a"
    assert model.graph.node("sum").inputs == ("b", "a")
    assert "bn.gamma" not in model.graph.weights


def test_replace_the_last_node_by_nothing_moves_the_output() -> None:
    model = edited(Replace("fc"))
    assert dict(model.graph.outputs) == {"out0": "pool"}
    assert output(model).shape == (2, 4)


def test_replace_by_one_keeps_the_name() -> None:
    model = edited(Replace("bn", (NewNode("Mul", ("s",)),), {"s": np.full((4, 1, 1), 2.0)}))
    node = model.graph.node("bn")
    assert (node.op, node.inputs, node.outputs) == ("Mul", ("a", "s"), ("bn",))
    folded = edited(Replace("bn"), SetWeights({"a.bias": 2 * network().weight("a.bias")}), Unshare("w", "a"))
    folded.edit([SetWeights({"w@a": 2 * network().weight("w")})])
    np.testing.assert_allclose(output(model), output(folded), rtol=1e-5)


def test_replace_by_several_numbers_them() -> None:
    factors = {"first": np.ones((2, 4, 1, 1)), "second": np.ones((4, 2, 3, 3))}
    pads = {"pads": (1, 1, 1, 1), "group": 1}
    model = edited(Replace("b", (NewNode("Conv", ("first",)), NewNode("Conv", ("second",), pads)), factors))
    assert ops(model.graph) == ["Conv", "BatchNormalization", "Conv", "Conv", "Add", "GlobalAveragePool", "Linear"]
    assert model.graph.tensors["b.0"].shape == ("N", 2, 6, 6)
    assert model.graph.tensors["b.1"].shape == IMAGE
    assert model.graph.node("sum").inputs == ("b.1", "bn")
    assert model.graph.tensors["b.1"].channel_axis == 1


def test_new_names_leave_out_those_that_are_taken() -> None:
    sketch = Sketch()
    x = sketch.input("x", "N", 3)
    relu = sketch.node("Relu", x, name="relu.0", shape=("N", 3))
    y = sketch.node("Relu", relu, name="relu", shape=("N", 3))
    y = sketch.node("Mul", y, sketch.random("relu.1", 3), name="mul", shape=("N", 3))
    plan = plan_edits(sketch.graph(y), [Replace("relu", (NewNode("Abs"), NewNode("Relu")))], sketch.values.__getitem__)
    assert [node.name for node in plan.graph.nodes] == ["relu.0", "relu.2", "relu.3", "mul"]
    behind = plan_edits(sketch.graph(y), [Insert(Tensor("relu"), (NewNode("Abs"),))], sketch.values.__getitem__)
    assert [node.name for node in behind.graph.nodes] == ["relu.0", "relu", "relu.2", "mul"]


def test_insert_behind_a_tensor_is_for_all_its_readers() -> None:
    model = edited(Insert(Tensor("bn"), (NewNode("Conv", ("new.w",)),), conv1x1(2)))
    assert model.graph.node("b").inputs[0] == "bn.0"
    assert model.graph.node("sum").inputs == ("b", "bn.0")
    assert [node.name for node in model.graph.nodes][:4] == ["a", "bn", "bn.0", "b"]
    same = edited(Insert(Tensor("bn"), (NewNode("Conv", ("new.w",)),), conv1x1(1)))
    np.testing.assert_allclose(output(same), output(network()), rtol=1e-6)


def test_insert_before_one_input_is_for_that_reader_alone() -> None:
    model = edited(Insert(Input("b", 0), (NewNode("Relu"), NewNode("Conv", ("new.w",))), conv1x1()))
    assert model.graph.node("b").inputs[0] == "b.in0.1"
    assert model.graph.node("sum").inputs == ("b", "bn")


def test_insert_behind_inputs_and_outputs() -> None:
    model = edited(Insert(Tensor("x"), (NewNode("Relu"),)), Insert(Tensor("fc"), (NewNode("Relu"),)))
    assert model.graph.node("a").inputs[0] == "x.0"
    assert dict(model.graph.outputs) == {"out0": "fc.0"}
    assert model.graph.inputs == ("x",)


def test_edits_see_those_before_them() -> None:
    model = edited(
        Replace(
            "bn", (NewNode("Mul", ("s",)), NewNode("Add", ("t",))), {"s": np.ones((4, 1, 1)), "t": np.ones((4, 1, 1))}
        ),
        Replace("bn.0"),
        SetWeights({"t": np.zeros((4, 1, 1))}),
    )
    np.testing.assert_array_equal(output(model), output(edited(Replace("bn"))))


def test_the_plan_lists_steps_and_values_in_order() -> None:
    model = network()
    edits = [Replace("bn"), Insert(Tensor("a"), (NewNode("Relu"),)), SetWeights({"fc.b": np.zeros(3)})]
    plan = plan_edits(model.graph, edits, model.weight)
    replaced, inserted = plan.steps
    assert isinstance(replaced, Replaced)
    assert (replaced.old.name, replaced.nodes) == ("bn", ())
    assert isinstance(inserted, Inserted)
    assert [node.name for node in inserted.nodes] == ["a.0"]
    assert list(plan.weights) == ["fc.b"]


def test_no_edits_are_a_plan() -> None:
    model = network()
    plan = plan_edits(model.graph, [], model.weight)
    assert plan.steps == ()
    assert plan.graph.nodes == model.graph.nodes


def test_shapes_that_no_rule_knows_stay_where_nothing_changed() -> None:
    """A convolution whose padding is only known at run time, before an op that has no shape rule."""
    sketch = Sketch()
    x = sketch.input("x", "N", 3, "H", 8)
    weight = sketch.random("w", 3, 3, 3, 3)
    conv = sketch.node(
        "Conv", x, weight, name="conv", shape=("N", 3, "H2", 4), auto_pad="SAME_UPPER", strides=(2, 2), group=1
    )
    graph = sketch.graph(sketch.node("DepthToSpace", conv, name="d2s", shape=("N", 3, None, 4), blocksize=1))
    plan = plan_edits(graph, [AddBias("conv", np.ones(3))], sketch.values.__getitem__)
    assert plan.graph.tensors["conv"].shape == ("N", 3, "H2", 4)
    with pytest.raises(
        EditError, match="changes the input shape of node 'd2s', and the shapes of DepthToSpace are unknown"
    ):
        plan_edits(graph, [SetWeights({"w": np.ones((6, 3, 3, 3))})], sketch.values.__getitem__)


@pytest.mark.parametrize("op", ["DepthToSpace", "ReduceSum", "Einsum"])
@pytest.mark.parametrize("known", [None, ("N", None, 4, 4)])
def test_to_learn_a_shape_is_no_change(op: str, known: Any) -> None:
    """What a framework did not infer is inferred by an edit of something else, before an op that has no shape rule."""
    sketch = Sketch()
    x = sketch.input("x", "N", 4, 4, 4)
    norm = sketch.node("GroupNormalization", x, name="norm", shape=known or ("N", 4, 4, 4), num_groups=2)
    last = sketch.node(op, norm, name="last", shape=("N", None, None, None))
    conv = sketch.node("Conv", x, sketch.random("w", 3, 4, 1, 1), name="conv", shape=("N", 3, 4, 4), group=1)
    graph = sketch.graph(last, conv)
    graph = replace(graph, tensors={**graph.tensors, "norm": replace(graph.tensors["norm"], shape=known)})
    plan = plan_edits(graph, [SetWeights({"w": np.ones((3, 4, 1, 1))})], sketch.values.__getitem__)
    assert plan.graph.tensors["norm"].shape == (("N", 4, 4, 4) if known is None else known)
    assert plan.graph.tensors["last"].shape == ("N", None, None, None)


def test_a_constant_seen_in_two_layouts_is_shared() -> None:
    sketch = Sketch()
    x = sketch.input("x", "N", 4)
    weight = sketch.random("w", 4, 4)
    y = sketch.node("MatMul", x, weight, name="a", shape=("N", 4))
    y = sketch.node("Gemm", y, weight, name="b", shape=("N", 4), transB=1)
    graph = canonicalize(sketch.graph(y))
    values = {name: sketch.values["w"] if name == "w" else sketch.values["w"].T for name in graph.weights}
    with pytest.raises(EditError, match="constant 'w' is also read by a in another layout: Unshare it first"):
        plan_edits(graph, [SetWeights({"w": np.ones((4, 4))})], values.__getitem__)
    plan = plan_edits(graph, [Unshare("w", "b"), SetWeights({"w@b": np.ones((4, 4))})], values.__getitem__)
    assert plan.graph.node("b").inputs[1] == "w@b"


# --- refusals -------------------------------------------------------------------------------------------------------

REFUSED: list[tuple[Sequence[Edit], str]] = [
    ([SetWeights({"nothing": np.ones(3)})], "no constant 'nothing' in the graph"),
    ([SetWeights({"x": np.ones(3)})], "no constant 'x' in the graph"),
    ([SetWeights({"fc.b": np.full(3, np.nan)})], "the new value of 'fc.b' holds NaN or infinity"),
    ([SetWeights({"fc.b": np.full(3, 1e300)})], "the new value of 'fc.b' holds NaN or infinity"),
    ([SetWeights({"fc.b": np.ones(4)})], "does not fit node 'fc' (Linear): bias (4,) does not fit 3 outputs"),
    ([SetWeights({"fc.w": np.ones((3, 5))})], "does not fit node 'fc' (Linear): weight (3, 5) reads 5 features, not 4"),
    ([SetWeights({"w": np.ones((5, 4, 3, 3))})], "does not fit node 'a' (Conv)"),
    ([AddBias("a", np.ones(4))], "node 'a' has a bias already, 'a.bias': use SetWeights"),
    ([AddBias("bn", np.ones(4))], "node 'bn' (BatchNormalization) cannot take a bias"),
    ([AddBias("b", np.ones(3))], "does not fit node 'b' (Conv): bias (3,) does not fit 4 output channels"),
    ([AddBias("bb", np.ones(4))], "AddBias: no node 'bb' in the graph"),
    ([Unshare("fc.w", "fc")], "constant 'fc.w' has one reader only, 'fc'"),
    ([Unshare("w", "fc")], "node 'fc' does not read a constant 'w'"),
    ([Unshare("bn", "b")], "node 'b' does not read a constant 'bn'"),
    ([Replace("nothing")], "Replace: no node 'nothing' in the graph"),
    ([Replace("b", (NewNode("Conv", ("other",)),))], "new node 'b' (Conv) reads 'other', which is no constant"),
    ([Replace("b", (NewNode("Conv", ("x",)),))], "reads 'x', which is no constant of the graph"),
    ([Replace("b", (NewNode("Relu"),), {"w": np.ones(3)})], "a tensor named 'w' exists already"),
    ([Replace("b", (NewNode("Relu"),), {"bn": np.ones(3)})], "a tensor named 'bn' exists already"),
    ([Replace("b", (NewNode("Conv", ("v",)),), {"v": np.ones((3, 4, 3, 3))})], "does not fit node 'sum' (Add)"),
    ([Insert(Tensor("nothing"), (NewNode("Relu"),))], "there is no tensor at nothing to insert nodes behind"),
    ([Insert(Tensor("w"), (NewNode("Relu"),))], "there is no tensor at w"),
    ([Insert(Tensor("a"), ())], "there is no tensor at a"),
    ([Insert(Input("a", 1), (NewNode("Relu"),))], "there is no tensor at a[1]"),
    ([Insert(Input("a", 7), (NewNode("Relu"),))], "there is no tensor at a[7]"),
    ([Insert(Input("aa", 0), (NewNode("Relu"),))], "Insert: no node 'aa'"),
    ([Insert(Tensor("a"), (NewNode("Conv", ("v",)),), {"v": np.ones((3, 4, 1, 1))})], "does not fit node 'bn'"),
    ([SetWeights({"fc.b": np.zeros(3)}), Replace("bn"), Replace("bn")], "Replace: no node 'bn'"),
]


@pytest.mark.parametrize(("edits", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refusals_name_what_blocks_and_change_nothing(edits: Sequence[Edit], message: str) -> None:
    model = network()
    graph, before = model.graph, output(model)
    with np.errstate(over="ignore"), pytest.raises(EditError, match=re.escape(message)):
        model.edit(edits)
    assert model.graph is graph
    np.testing.assert_array_equal(output(model), before)


def test_a_chain_may_stand_before_a_node_of_unknown_shapes() -> None:
    """Its result has the shape of the tensor that it replaces, so that of a MatMul behind it is not inferred again."""
    b = NetworkBuilder("product")
    x = b.input("x", 4, 6)
    b.output("y", b.op("MatMul", "product", b.linear("left", x, 4, bias=False), b.op("Relu", "right", x)))
    network = b.build()
    weights = {"a": np.ones((2, 6), np.float32), "b": np.ones((4, 2), np.float32)}
    chain = (NewNode("Linear", ("a",)), NewNode("Linear", ("b",)))
    plan = plan_edits(network.graph, [Replace("left", chain, weights)], network.weights.__getitem__)
    assert plan.graph.node("product").inputs == ("left.1", "right")
    wrong = {**weights, "b": np.ones((5, 2), np.float32)}
    with pytest.raises(EditError, match="product"):
        plan_edits(network.graph, [Replace("left", chain, wrong)], network.weights.__getitem__)
