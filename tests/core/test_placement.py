"""Which sites are quantized, how, and why others are not: both targets on graphs drawn by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from drawn_graphs import (
    ACTIVATION,
    BIAS,
    DEFAULT,
    IMAGE,
    ORT,
    WEIGHT,
    conv,
    drawn,
    formats,
    on_each_target,
    relu,
    small,
)
from sketch import Sketch

from isobit.canonical import canonicalize
from isobit.graph import Graph, Input, Tensor, Weight
from isobit.placement import QuantConfig, place
from isobit.targets import Target

# --- chains ---------------------------------------------------------------------------------------------------------


@on_each_target
def test_a_fused_chain_is_quantized_at_its_ends(target: Target) -> None:
    sketch = Sketch()
    y = conv(sketch, sketch.input("x", *IMAGE), "conv", bias=True)
    y = sketch.batch_norm("bn", y, 4, IMAGE)
    plan = place(drawn(sketch, relu(sketch, y, "relu")), target)
    assert formats(plan) == {"x": ACTIVATION, "relu": ACTIVATION, "w:conv.w": WEIGHT, "w:conv.b": BIAS}
    bias = plan.placements[Weight("conv.b")]
    assert (bias.kind, bias.scale_of) == ("bias", (Tensor("x"), Weight("conv.w")))
    assert plan.placements[Weight("conv.w")].kind == "weight"
    assert plan.floats["conv"] == plan.floats["bn"] == "inside the fused chain that ends in relu"
    assert plan.floats["bn.gamma"] == "scale of BatchNormalization stays in float"
    assert set(plan.placements).isdisjoint({Tensor("conv"), Tensor("bn")})


@on_each_target
@pytest.mark.parametrize("tapped", ["conv", "bn"])
def test_a_chain_ends_where_others_read_it(target: Target, tapped: str) -> None:
    sketch = Sketch()
    y = conv(sketch, sketch.input("x", *IMAGE), "conv")
    y = sketch.batch_norm("bn", y, 4, IMAGE)
    plan = place(drawn(sketch, relu(sketch, y, "relu"), tapped), target)
    assert Tensor(tapped) in plan.placements
    assert (Tensor("conv") in plan.placements) == (tapped == "conv")


def test_what_a_target_does_not_fuse_or_run_stays_in_float() -> None:
    sketch = Sketch()
    y = conv(sketch, sketch.input("x", *IMAGE), "conv")
    y = sketch.node("PRelu", y, sketch.random("slope", 4, 1, 1), name="prelu", shape=IMAGE)
    y = sketch.node("Exp", y, name="exp", shape=IMAGE)
    graph = drawn(sketch, relu(sketch, y, "relu"))
    assert formats(place(graph, DEFAULT)) == {
        "x": ACTIVATION,
        "prelu": ACTIVATION,
        "exp": ACTIVATION,
        "relu": ACTIVATION,
        "w:conv.w": WEIGHT,
    }
    plan = place(graph, ORT)
    assert formats(plan) == {"x": ACTIVATION, "conv": ACTIVATION, "w:conv.w": WEIGHT}
    assert plan.floats == {
        "prelu": "target 'onnxruntime-cpu' runs PRelu in float",
        "exp": "target 'onnxruntime-cpu' runs Exp in float",
        "relu": "target 'onnxruntime-cpu' runs Relu in float",
        "slope": "PRelu prelu stays in float",
    }


@on_each_target
def test_a_residual_is_quantized_on_every_edge_but_before_its_relu(target: Target) -> None:
    sketch = Sketch()
    x = sketch.input("x", *IMAGE)
    y = relu(sketch, conv(sketch, x, "a"), "a.relu")
    total = sketch.node("Add", conv(sketch, y, "b"), x, name="sum", shape=IMAGE)
    plan = place(drawn(sketch, relu(sketch, total, "relu")), target)
    expected = {"x", "a.relu", "b", "relu"}
    assert {name for name, spec in formats(plan).items() if spec == ACTIVATION} == expected
    assert plan.floats["sum"] == "inside the fused chain that ends in relu"


@on_each_target
def test_placements_come_in_the_order_of_the_graph(target: Target) -> None:
    sketch = Sketch()
    y = conv(sketch, sketch.input("x", *IMAGE), "second")
    plan = place(drawn(sketch, conv(sketch, y, "first")), target)
    assert [str(p.site) for p in plan.of_kind("activation")] == ["x", "second", "first"]


# --- ties -----------------------------------------------------------------------------------------------------------


def test_a_concatenation_shares_one_encoding_where_the_target_says_so() -> None:
    sketch = Sketch()
    x = sketch.input("x", *IMAGE)
    parts = [conv(sketch, x, "a"), relu(sketch, conv(sketch, x, "b"), "b.relu")]
    y = sketch.node("Concat", *parts, name="cat", shape=("N", 8, 6, 6), axis=1)
    graph = drawn(sketch, conv(sketch, y, "last", source=8))
    plan = place(graph, DEFAULT)
    groups = {group: [str(p.site) for p in members] for group, members in plan.groups().items()}
    assert groups == {"x": ["x"], "a": ["a", "b.relu", "cat"], "last": ["last"]}
    assert formats(plan)["cat"] == ACTIVATION + " (copy)", "its values are on the grid already"
    assert formats(plan)["a"] == formats(plan)["b.relu"] == ACTIVATION
    untied = place(graph, ORT)
    assert all(len(members) == 1 for members in untied.groups().values())
    assert formats(untied)["cat"] == ACTIVATION


@on_each_target
@pytest.mark.parametrize(
    ("op", "shape", "attributes"),
    [
        ("MaxPool", ("N", 4, 3, 3), {"kernel_shape": (2, 2), "strides": (2, 2)}),
        ("Transpose", ("N", 6, 6, 4), {"perm": (0, 2, 3, 1)}),
        ("Slice", ("N", 4, 3, 6), {}),
        ("Resize", ("N", 4, 12, 12), {"mode": "nearest"}),
        ("Pad", ("N", 4, 8, 8), {"value": 0.0}),
        ("Flatten", ("N", 144), {}),
    ],
)
def test_ops_that_move_values_pass_the_encoding_on(target: Target, op: str, shape: Any, attributes: Any) -> None:
    sketch = Sketch()
    y = conv(sketch, sketch.input("x", *IMAGE), "conv")
    moved = sketch.node(op, y, name="moved", shape=shape, **attributes)
    last = sketch.node("GlobalAveragePool", moved, name="pool", shape=None)
    plan = place(drawn(sketch, last), target)
    assert plan.placements[Tensor("moved")].group == "conv"
    assert formats(plan)["moved"] == ACTIVATION + " (copy)"
    assert formats(plan)["conv"] == formats(plan)["pool"] == ACTIVATION


@on_each_target
@pytest.mark.parametrize(("op", "attributes"), [("Resize", {"mode": "linear"}), ("Pad", {"value": 1.0})])
def test_ops_that_make_new_values_do_not(target: Target, op: str, attributes: Any) -> None:
    sketch = Sketch()
    y = conv(sketch, sketch.input("x", *IMAGE), "conv")
    y = sketch.node(op, y, name="made", shape=IMAGE, **attributes)
    plan = place(drawn(sketch, conv(sketch, y, "last")), target)
    assert formats(plan)["made"] == ACTIVATION
    assert plan.placements[Tensor("made")].group == "made"


@on_each_target
def test_a_model_input_that_is_only_moved_has_its_encoding_from_behind(target: Target) -> None:
    sketch = Sketch()
    y = sketch.node("Transpose", sketch.input("x", "N", 6, 6, 4), name="nchw", shape=IMAGE, perm=(0, 3, 1, 2))
    plan = place(drawn(sketch, conv(sketch, y, "conv")), target)
    assert formats(plan)["x"] == ACTIVATION
    assert formats(plan)["nchw"] == ACTIVATION + " (copy)"


# --- fixed ranges ---------------------------------------------------------------------------------------------------


@on_each_target
def test_ranges_that_the_op_fixes(target: Target) -> None:
    sketch = Sketch()
    y = conv(sketch, sketch.input("x", *IMAGE), "conv")
    y = sketch.node("Sigmoid", y, name="sigmoid", shape=IMAGE)
    y = sketch.node("Reshape", y, name="flat", shape=("N", 144))
    graph = drawn(sketch, sketch.node("Softmax", y, name="softmax", shape=("N", 144)))
    plan = place(graph, target)
    for name in ("sigmoid", "flat", "softmax"):
        assert plan.placements[Tensor(name)].fixed_range == (0.0, 1.0)
    assert plan.placements[Tensor("conv")].fixed_range is None
    # a symmetric grid would waste half of its levels on a range from 0: it is calibrated like any other
    assert place(graph, target, QuantConfig(activations="int8")).placements[Tensor("sigmoid")].fixed_range is None


def test_members_of_a_group_that_disagree_have_no_fixed_range() -> None:
    sketch = Sketch()
    x = sketch.input("x", *IMAGE)
    sigmoid = sketch.node("Sigmoid", conv(sketch, x, "a"), name="one", shape=IMAGE)
    tanh = sketch.node("Tanh", conv(sketch, x, "b"), name="two", shape=IMAGE)
    y = sketch.node("Concat", sigmoid, tanh, name="cat", shape=("N", 8, 6, 6), axis=1)
    plan = place(drawn(sketch, conv(sketch, y, "last", source=8)), DEFAULT)
    assert {plan.placements[Tensor(name)].fixed_range for name in ("one", "two", "cat")} == {None}


# --- masks and shapes -----------------------------------------------------------------------------------------------


def attention(sketch: Sketch, mask: str, covered: float = -1e9) -> Graph:
    q, k = sketch.input("q", "N", 5, 8), sketch.input("k", "N", 8, 5)
    scores = sketch.node("MatMul", q, k, name="scores", shape=("N", 5, 5))
    if mask == "constant":
        added = sketch.weight("mask", np.triu(np.full((5, 5), covered), 1))
    else:
        flags = sketch.input("flags", "N", 5, 5, dtype="bool")
        added = sketch.node(
            "Where", flags, sketch.weight("no", 0.0), sketch.weight("yes", -1e9), name="where", shape=("N", 5, 5)
        )
    total = sketch.node("Add", scores, added, name="masked", shape=("N", 5, 5))
    return drawn(sketch, sketch.node("Softmax", total, name="softmax", shape=("N", 5, 5)))


@on_each_target
def test_padding_as_large_as_a_mask_has_no_grid(target: Target) -> None:
    sketch = Sketch()
    conv = sketch.node(
        "Conv", sketch.input("x", "N", 3, 8, 8), sketch.random("w", 4, 3, 1, 1), name="c", shape=("N", 4, 8, 8),
        kernel_shape=(1, 1), pads=(0,) * 4, strides=(1, 1), dilations=(1, 1), group=1,
    )  # fmt: skip
    pads = (0, 0, 1, 1, 0, 0, 1, 1)
    pad = sketch.node("Pad", conv, name="padded", shape=("N", 4, 10, 10), pads=pads, mode="constant", value=-np.inf)
    highest = sketch.node("ReduceMax", pad, name="highest", shape=("N", 4), axes=(2, 3), keepdims=0)
    plan = place(canonicalize(sketch.graph(highest)), target)
    assert plan.floats["padded"] == "Pad puts a mask on it"


@on_each_target
@pytest.mark.parametrize(("scale", "fill"), [(1.0, 0.0), (-1e9, 0.0), (1.0, -1e9)])
def test_sines_of_a_length_are_no_mask(target: Target, scale: float, fill: float) -> None:
    """Positions of whole numbers, added to a signal, leave it its grid, unless as large as a mask or padded with it."""
    sketch = Sketch()
    word, places = sketch.input("word", "N", dtype="int64"), sketch.input("places", "N", 8, dtype="int64")
    x = sketch.node("Gather", sketch.random("table", 9, 8), word, name="x", shape=("N", 8), axis=0)
    phase = sketch.node("Cast", places, name="phase", shape=("N", 8), to="float32")
    waves = sketch.node("Sin", phase, name="waves", shape=("N", 8))
    if scale != 1:
        waves = sketch.node("Mul", waves, sketch.weight("large", scale), name="scaled", shape=("N", 8))
    waves = sketch.node("Slice", waves, name="fewer", shape=("N", 7), starts=(0,), ends=(7,), axes=(1,), steps=(1,))
    waves = sketch.node("Pad", waves, name="more", shape=("N", 8), pads=(0, 0, 0, 1), mode="constant", value=fill)
    total = sketch.node("Add", x, waves, name="sum", shape=("N", 8))
    out = sketch.node("Linear", total, sketch.random("w", 3, 8), name="out", shape=("N", 3))
    plan = place(drawn(sketch, out), target)
    assert (plan.floats.get("sum") == "Add puts a mask on it") == ((scale, fill) != (1, 0))


@on_each_target
@pytest.mark.parametrize(
    ("mask", "covered"), [("constant", -1e9), ("constant", -1e4), ("constant", -100.0), ("computed", -1e9)]
)
def test_masked_scores_have_no_grid(target: Target, mask: str, covered: float) -> None:
    """A grid that reaches down to -1e9 has no level left for the scores, and few down to the -100 of Swin."""
    plan = place(attention(Sketch(), mask, covered), target)
    assert formats(plan) == {"q": ACTIVATION, "k": ACTIVATION, "scores": ACTIVATION, "softmax": ACTIVATION}
    assert plan.floats["masked"] == "Add puts a mask on it"
    if mask == "computed":
        assert plan.floats["where"] == "computed from shapes, masks or constants alone"
        assert plan.floats["yes"] == "Where where stays in float"
    else:
        assert plan.floats["mask"] == "Add masked stays in float"


@on_each_target
@pytest.mark.parametrize("op", ["Where", "Sub"])
@pytest.mark.parametrize("last", ["Softmax", "Sigmoid"])
def test_masks_further_from_their_softmax(target: Target, op: str, last: str) -> None:
    """Chosen or subtracted, scaled, bounded and moved behind; the same constant before another operation is data."""
    sketch = Sketch()
    x, fill = sketch.input("x", "N", 5, 8), sketch.weight("fill", -1e4 if op == "Where" else 1e4)
    scores = sketch.node("MatMul", x, sketch.random("w", 8, 8), name="scores", shape=("N", 5, 8))
    seen = (sketch.weight("seen", np.triu(np.ones((5, 8), bool)), "bool"),) if op == "Where" else ()
    total = sketch.node(op, *seen, scores, fill, name="masked", shape=("N", 5, 8))
    y = sketch.node("Mul", total, sketch.weight("k", 0.5), name="scaled", shape=("N", 5, 8))
    y = sketch.node("Clip", y, name="bounded", shape=("N", 5, 8), min=-1e5, max=1e5)
    y = sketch.node("Transpose", y, name="moved", shape=("N", 8, 5), perm=(0, 2, 1))
    plan = place(drawn(sketch, sketch.node(last, y, name="last", shape=("N", 8, 5))), target)
    assert (plan.floats.get("masked") == f"{op} puts a mask on it") == (last == "Softmax")


@on_each_target
def test_a_moved_tensor_that_nothing_reads_has_no_grid(target: Target) -> None:
    """Code that overwrites part of a tensor often takes the old part for its size alone."""
    sketch = Sketch()
    y = relu(sketch, conv(sketch, sketch.input("x", *IMAGE), "conv"), "relu")
    sketch.node("Slice", y, name="part", shape=("N", 4, 2, 6), starts=[0], ends=[2], axes=[2])
    plan = place(drawn(sketch, y), target)
    assert Tensor("relu") in plan.placements
    assert Tensor("part") not in plan.placements
    assert plan.floats["part"] == "nothing reads it"


@on_each_target
def test_a_projected_table_is_signal(target: Target) -> None:
    """DeBERTa's relative positions: a learned table through a linear layer, and its product with the queries."""
    sketch = Sketch()
    x = sketch.input("x", "N", 5, 8)
    part = sketch.node("Slice", sketch.random("table", 9, 8), name="part", shape=(7, 8), starts=[0], ends=[7], axes=[0])
    keys = sketch.node("Linear", part, sketch.random("w", 8, 8), name="keys", shape=(7, 8))
    turned = sketch.node("Transpose", keys, name="turned", shape=(8, 7), perm=(1, 0))
    y = sketch.node("MatMul", x, turned, name="y", shape=("N", 5, 7))
    plan = place(drawn(sketch, y), target)
    assert {Tensor("part"), Weight("w"), Tensor("keys"), Tensor("turned"), Tensor("y")} <= set(plan.placements)


@on_each_target
def test_positions_made_of_constants_are_no_signal(target: Target) -> None:
    """Rotary angles reach far and must stay exact; nothing learned projects them."""
    sketch = Sketch()
    places = sketch.input("places", "N", 1, dtype="int64")
    ramp = sketch.node("Cast", places, name="ramp", shape=("N", 1), to="float32")
    angles = sketch.node("MatMul", ramp, sketch.random("frequencies", 1, 4), name="angles", shape=("N", 4))
    assert Tensor("angles") not in place(drawn(sketch, angles), target).placements


@on_each_target
def test_integer_tensors_are_no_signal(target: Target) -> None:
    sketch = Sketch()
    ids = sketch.input("ids", "N", 5, dtype="int64")
    x = sketch.node("Gather", sketch.random("table", 11, 8), ids, name="embed", shape=("N", 5, 8))
    y = sketch.node("Linear", x, sketch.random("w", 4, 8), name="fc", shape=("N", 5, 4))
    plan = place(drawn(sketch, y), target)
    assert formats(plan) == {
        "embed": ACTIVATION,
        "fc": ACTIVATION,
        "w:table": "int8 symmetric per-tensor",
        "w:w": WEIGHT,
    }


# --- constants ------------------------------------------------------------------------------------------------------


@on_each_target
def test_constants_of_elementwise_ops_are_quantized_as_activations(target: Target) -> None:
    sketch = Sketch()
    y = conv(sketch, sketch.input("x", *IMAGE), "conv")
    y = sketch.node("Mul", y, sketch.random("factor", 4, 1, 1), name="mul", shape=IMAGE)
    plan = place(drawn(sketch, y), target, QuantConfig(activations="int8"))
    assert plan.placements[Weight("factor")].kind == "constant"
    assert formats(plan)["w:factor"] == "int8 symmetric per-tensor"


def test_a_weight_shared_alike_is_one_site_and_else_one_for_each_reader() -> None:
    sketch = Sketch()
    ids = sketch.input("ids", "N", 5, dtype="int64")
    table = sketch.random("table", 8, 8)
    x = sketch.node("Gather", table, ids, name="embed", shape=("N", 5, 8))
    y = sketch.node("Linear", x, sketch.random("w", 8, 8), name="first", shape=("N", 5, 8))
    y = sketch.node("Linear", y, "w", name="second", shape=("N", 5, 8))
    y = sketch.node("Linear", y, table, name="head", shape=("N", 5, 8))
    plan = place(drawn(sketch, y), DEFAULT)
    assert plan.placements[Weight("w")].channel_axis == 0
    assert Weight("table") not in plan.placements
    assert str(plan.placements[Input("embed", 0)].spec) == "int8 symmetric per-tensor"
    assert str(plan.placements[Input("head", 1)].spec) == WEIGHT
    partly = place(drawn(sketch, y), DEFAULT, QuantConfig(exclude=["second"]))
    assert Weight("w") not in partly.placements
    assert Input("first", 1) in partly.placements
    assert Input("second", 1) not in partly.placements


def test_stacked_weights_have_their_channels_in_the_middle() -> None:
    sketch = Sketch()
    x = sketch.input("x", 2, 5, 3)
    graph = drawn(sketch, sketch.node("MatMul", x, sketch.random("w", 2, 3, 4), name="mm", shape=(2, 5, 4)))
    placement = place(graph, DEFAULT).placements[Weight("w")]
    assert (placement.channel_axis, placement.block_axis) == (1, 2)


def test_blocks_where_they_divide_and_channels_where_they_do_not() -> None:
    sketch = Sketch()
    x = sketch.input("x", "N", 6)
    y = sketch.node("Linear", x, sketch.random("odd", 8, 6), name="a", shape=("N", 8))
    y = sketch.node("Linear", y, sketch.random("even", 4, 8), sketch.random("b.bias", 4), name="b", shape=("N", 4))
    graph = drawn(sketch, y)
    plan = place(graph, DEFAULT, QuantConfig(weights="int4 block=4"))
    assert formats(plan)["w:even"] == "int4 symmetric block=4"
    assert plan.placements[Weight("even")].block_axis == 1
    assert formats(plan)["w:odd"] == "int4 symmetric per-channel"
    assert plan.floats["b.bias"] == "the input or weight of b is no integer", "blocks have no one accumulator scale"
    overridden = place(graph, DEFAULT, QuantConfig(overrides={"odd": "int4 block=4"}))
    assert formats(overridden)["w:odd"] == "int4 symmetric block=4", (
        "an override is not changed: the error comes when it is encoded"
    )


# --- biases ---------------------------------------------------------------------------------------------------------


def test_biases_that_cannot_be_integers() -> None:
    sketch = Sketch()
    graph = drawn(sketch, conv(sketch, sketch.input("x", *IMAGE), "conv", bias=True))
    for config in (
        QuantConfig(weights="float16"),
        QuantConfig(activations="float8e4m3"),
        QuantConfig(exclude=["conv"]),
    ):
        plan = place(graph, DEFAULT, config)
        assert Weight("conv.b") not in plan.placements
        assert plan.floats["conv.b"] == "the input or weight of conv is no integer"
    plan = place(graph, DEFAULT, QuantConfig(overrides={"conv.b": None}))
    assert plan.floats["conv.b"] == "float by your override"
    per_tensor = place(graph, DEFAULT, QuantConfig(weights="int8 per-tensor"))
    assert formats(per_tensor)["w:conv.b"] == "int32 symmetric per-tensor"


def test_a_bias_of_two_layers_has_two_scales() -> None:
    sketch = Sketch()
    x = sketch.input("x", *IMAGE)
    bias = sketch.random("bias", 4)
    y = sketch.node("Conv", x, sketch.random("a.w", 4, 4, 1, 1), bias, name="a", shape=IMAGE)
    y = sketch.node("Conv", y, sketch.random("b.w", 4, 4, 1, 1), bias, name="b", shape=IMAGE)
    plan = place(drawn(sketch, y), DEFAULT)
    assert Weight("bias") not in plan.placements
    assert plan.placements[Input("a", 2)].scale_of == (Tensor("x"), Weight("a.w"))
    assert plan.placements[Input("b", 2)].scale_of == (Tensor("a"), Weight("b.w"))


@on_each_target
def test_every_float_tensor_and_weight_is_placed_or_explained(target: Target) -> None:
    for graph in (small(), attention(Sketch(), "computed"), attention(Sketch(), "constant")):
        plan = place(graph, target)
        names = [name for name in [*graph.tensors, *graph.weights] if graph.is_float(name)]
        for name in names:
            placed = {Tensor(name), Weight(name)} & plan.placements.keys()
            assert bool(placed) != (name in plan.floats), name
