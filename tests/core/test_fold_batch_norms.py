"""Folding leaves the function unchanged, folds what it can, and says why it leaves the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy_backend import checked
from sketch import Sketch, ops

from isobit.backend import CheckedModel
from isobit.canonical import canonicalize
from isobit.graph import to_canonical
from isobit.techniques import FoldBatchNorms, TechniqueReport
from isobit.techniques.context import TechniqueContext

IMAGE = ("N", 4, 5, 5)


def layer(
    sketch: Sketch,
    x: str,
    name: str,
    *,
    group: int = 1,
    out: int = 4,
    pad: int = 0,
    bias: bool = True,
    weight: str = "",
) -> str:
    """A 1x1 or (padded) 3x3 convolution of 4 channels to `out`."""
    kernel = 3 if pad else 1
    operands = [weight or sketch.random(f"{name}.w", out, 4 // group, kernel, kernel)]
    operands += [sketch.random(f"{name}.b", out)] if bias else []
    return sketch.node("Conv", x, *operands, name=name, shape=("N", out, 5, 5), group=group, pads=(pad,) * 4)


def fold(
    sketch: Sketch, *outputs: str, technique: FoldBatchNorms | None = None
) -> tuple[CheckedModel, TechniqueReport]:
    """Fold, after checking that the function stays and the model is consistent."""
    graph = canonicalize(sketch.graph(*outputs))
    values = {n: to_canonical(sketch.values[i.source or n], i.layout) for n, i in graph.weights.items()}
    model = checked(graph, values)
    shape = tuple(3 if not isinstance(n, int) else n for n in graph.tensors["x"].shape or ())
    batch = {"x": np.random.default_rng(7).standard_normal(shape).astype(np.float32)}
    before = model.run(batch)
    report = (technique or FoldBatchNorms()).apply(TechniqueContext(model))
    for name, value in model.run(batch).items():
        np.testing.assert_allclose(value, before[name], rtol=2e-4, atol=2e-4)
        assert np.abs(value).max() > 1e-3
    for name, info in model.graph.weights.items():
        assert model.weight(name).shape == info.shape
        assert model.weight(name).dtype == np.float32
    return model, report


# --- backward -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("group", "pad"), [(1, 0), (1, 1), (2, 0), (4, 1)])
def test_into_the_convolution_before(group: int, pad: int, bias: bool) -> None:
    sketch = Sketch()
    y = layer(sketch, sketch.input("x", *IMAGE), "conv", group=group, pad=pad, bias=bias)
    y = sketch.batch_norm("bn", y, 4, IMAGE)
    model, report = fold(sketch, sketch.node("Relu", y, name="relu", shape=IMAGE))
    assert ops(model.graph) == ["Conv", "Relu"]
    assert report.changed == ("bn into conv",)
    assert report.left == {}
    assert set(model.graph.weights) == {"conv.w", "conv.b" if bias else "conv.bias"}


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_into_the_transposed_convolution_before(group: int, bias: bool) -> None:
    sketch = Sketch()
    x = sketch.input("x", "N", 4, 3, 3)
    operands = [sketch.random("up.w", 4, 3, 2, 2), *([sketch.random("up.b", 3 * group)] if bias else [])]
    shape = ("N", 3 * group, 6, 6)
    y = sketch.node("ConvTranspose", x, *operands, name="up", shape=shape, group=group, strides=(2, 2))
    model, _ = fold(sketch, sketch.batch_norm("bn", y, 3 * group, shape))
    assert ops(model.graph) == ["ConvTranspose"]
    assert model.graph.node("up").attributes["group"] == group


@pytest.mark.parametrize("bias", [True, False])
def test_into_the_linear_layer_before(bias: bool) -> None:
    sketch = Sketch()
    operands = [sketch.random("fc.w", 6, 4), *([sketch.random("fc.b", 6)] if bias else [])]
    y = sketch.node("Gemm", sketch.input("x", "N", 4), *operands, name="fc", shape=("N", 6), transB=1)
    model, _ = fold(sketch, sketch.batch_norm("bn", y, 6, ("N", 6)))
    assert ops(model.graph) == ["Linear"]


def test_the_bits_are_those_of_the_documented_order() -> None:
    sketch = Sketch()
    y = layer(sketch, sketch.input("x", *IMAGE), "conv")
    model, _ = fold(sketch, sketch.batch_norm("bn", y, 4, IMAGE))
    gamma, beta, mean, var = (sketch.values[f"bn.{part}"] for part in ("gamma", "beta", "mean", "var"))
    for channel in range(4):
        k = np.float32(gamma[channel] / np.sqrt(np.float32(var[channel] + np.float32(1e-5))))
        weight = np.float32(sketch.values["conv.w"][channel] * k)
        bias = np.float32(np.float32(np.float32(sketch.values["conv.b"][channel] - mean[channel]) * k) + beta[channel])
        np.testing.assert_array_equal(model.weight("conv.w")[channel], weight)
        assert model.weight("conv.b")[channel] == bias


@pytest.mark.parametrize("op", ["Mul", "Add", "Sub", "Div"])
@pytest.mark.parametrize("shape", [(), (1,), (4, 1, 1), (1, 4, 1, 1)])
def test_constants_behind_a_layer(op: str, shape: tuple[int, ...]) -> None:
    sketch = Sketch()
    y = layer(sketch, sketch.input("x", *IMAGE), "conv")
    constant = sketch.weight("c", sketch.rng.uniform(0.5, 2, shape))
    model, report = fold(sketch, sketch.node(op, y, constant, name="op", shape=IMAGE))
    assert ops(model.graph) == ["Conv"]
    assert report.changed == ("op into conv",)


@pytest.mark.parametrize("op", ["Mul", "Add"])
def test_constants_on_the_left(op: str) -> None:
    sketch = Sketch()
    y = layer(sketch, sketch.input("x", *IMAGE), "conv")
    model, _ = fold(sketch, sketch.node(op, sketch.random("c", 4, 1, 1), y, name="op", shape=IMAGE))
    assert ops(model.graph) == ["Conv"]


def test_the_chain_that_exporters_leave_for_a_batch_norm() -> None:
    sketch = Sketch()
    y = layer(sketch, sketch.input("x", *IMAGE), "conv", bias=False)
    for index, op in enumerate(("Sub", "Mul", "Mul", "Add")):
        y = sketch.node(op, y, sketch.random(f"c{index}", 4, 1, 1), name=f"op{index}", shape=IMAGE)
    model, report = fold(sketch, sketch.node("Relu", y, name="relu", shape=IMAGE))
    assert ops(model.graph) == ["Conv", "Relu"]
    assert len(report.changed) == 4


def test_constants_behind_a_linear_layer_of_sequences() -> None:
    sketch = Sketch()
    x = sketch.input("x", "N", 3, 4)
    y = sketch.node("MatMul", x, sketch.random("w", 4, 6), name="fc", shape=("N", 3, 6))
    y = sketch.node("Mul", y, sketch.random("c", 6), name="mul", shape=("N", 3, 6))
    model, _ = fold(sketch, y)
    assert ops(model.graph) == ["Linear"]


@pytest.mark.parametrize(
    ("op", "operand"),
    [
        ("Mul", lambda s: s.random("c", 5)),  # along the width
        ("Add", lambda s: s.random("c", 5, 1)),  # along the height
        ("Mul", lambda s: s.random("c", 2, 1, 1, 1, 1)),  # a new axis
        ("Div", lambda s: s.weight("c", [[[1.0]], [[0.0]], [[2.0]], [[3.0]]])),
    ],
)
def test_constants_that_are_none_of_a_channel_stay(op: str, operand: Callable[[Sketch], str]) -> None:
    sketch = Sketch()
    y = layer(sketch, sketch.input("x", *IMAGE), "conv")
    graph = canonicalize(sketch.graph(sketch.node(op, y, operand(sketch), name="op", shape=None)))
    model = checked(graph, sketch.values)
    report = FoldBatchNorms().apply(TechniqueContext(model))
    assert (report.changed, report.left) == ((), {})
    assert model.graph is graph


@pytest.mark.parametrize("op", ["Sub", "Div"])
def test_a_constant_minus_or_over_a_tensor_stays(op: str) -> None:
    sketch = Sketch()
    y = layer(sketch, sketch.input("x", *IMAGE), "conv")
    model, report = fold(sketch, sketch.node(op, sketch.random("c", 4, 1, 1), y, name="op", shape=IMAGE))
    assert ops(model.graph) == ["Conv", op]
    assert report.changed == ()


def test_a_bias_of_two_layers_is_given_to_each() -> None:
    sketch = Sketch()
    x = sketch.input("x", *IMAGE)
    bias = sketch.random("bias", 4)
    outputs = []
    for name in ("a", "b"):
        y = sketch.node("Conv", x, sketch.random(f"{name}.w", 4, 4, 1, 1), bias, name=name, shape=IMAGE, group=1)
        outputs.append(sketch.batch_norm(f"{name}.bn", y, 4, IMAGE))
    model, report = fold(sketch, *outputs)
    assert ops(model.graph) == ["Conv", "Conv"]
    assert len(report.changed) == 2
    assert len({node.inputs[2] for node in model.graph.nodes}) == 2


# --- forward --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_into_the_convolution_behind(group: int, bias: bool) -> None:
    sketch = Sketch()
    y = sketch.node("Relu", sketch.input("x", *IMAGE), name="relu", shape=IMAGE)
    y = sketch.batch_norm("bn", y, 4, IMAGE)
    model, report = fold(sketch, layer(sketch, y, "conv", group=group, out=8, bias=bias))
    assert ops(model.graph) == ["Relu", "Conv"]
    assert report.changed == ("bn into conv",)


def test_into_the_linear_layer_behind() -> None:
    sketch = Sketch()
    y = sketch.batch_norm("bn", sketch.input("x", "N", 4), 4, ("N", 4))
    model, _ = fold(sketch, sketch.node("Linear", y, sketch.random("w", 6, 4), name="fc", shape=("N", 6)))
    assert ops(model.graph) == ["Linear"]


# --- what is left ---------------------------------------------------------------------------------------------------


def test_zero_padding_stops_the_fold_forward() -> None:
    sketch = Sketch()
    y = sketch.node("Relu", sketch.input("x", *IMAGE), name="relu", shape=IMAGE)
    y = layer(sketch, sketch.batch_norm("bn", y, 4, IMAGE), "conv", pad=1)
    model, report = fold(sketch, y)
    assert ops(model.graph) == ["Relu", "Mul", "Add", "Conv"]
    assert report.changed == (
        "bn became a scale and a shift: Relu comes before it; conv pads with zeros, which the shift would change",
    )
    assert [node.name for node in model.graph.nodes] == ["relu", "bn.0", "bn.1", "conv"]
    assert set(model.graph.weights) == {"bn.scale", "bn.shift", "conv.w", "conv.b"}


def leftovers() -> dict[str, tuple[Callable[[Sketch], tuple[str, ...]], str]]:
    """Networks whose batch norm stays, and why."""

    def nothing_around(s: Sketch) -> tuple[str, ...]:
        return (s.batch_norm("bn", s.input("x", *IMAGE), 4, IMAGE),)

    def output_tapped(s: Sketch) -> tuple[str, ...]:
        y = layer(s, s.input("x", *IMAGE), "conv")
        return s.batch_norm("bn", y, 4, IMAGE), y

    def other_readers(s: Sketch) -> tuple[str, ...]:
        y = layer(s, s.input("x", *IMAGE), "conv")
        bn = s.batch_norm("bn", y, 4, IMAGE)
        return (s.node("Add", bn, y, name="sum", shape=IMAGE),)

    def shared_weight(s: Sketch) -> tuple[str, ...]:
        x = s.input("x", *IMAGE)
        y = layer(s, x, "conv")
        z = layer(s, x, "other", weight="conv.w", bias=False)
        return s.batch_norm("bn", y, 4, IMAGE), z

    def computed_weight(s: Sketch) -> tuple[str, ...]:
        x = s.input("x", *IMAGE)
        weight = s.node("Add", s.random("p", 4, 4, 1, 1), s.random("q", 4, 4, 1, 1), name="made", shape=(4, 4, 1, 1))
        y = s.node("Conv", x, weight, name="conv", shape=IMAGE, group=1)
        return (s.batch_norm("bn", y, 4, IMAGE),)

    def channels_last(s: Sketch) -> tuple[str, ...]:
        x = s.input("x", "N", 3, 4)
        y = s.node("Linear", x, s.random("w", 6, 4), name="fc", shape=("N", 3, 6))
        return (s.batch_norm("bn", y, 3, ("N", 3, 6)),)

    def channels_last_behind(s: Sketch) -> tuple[str, ...]:
        y = s.batch_norm("bn", s.input("x", "N", 3, 4), 3, ("N", 3, 4))
        return (s.node("Linear", y, s.random("w", 6, 4), name="fc", shape=("N", 3, 6)),)

    def several_readers_behind(s: Sketch) -> tuple[str, ...]:
        y = s.batch_norm("bn", s.input("x", *IMAGE), 4, IMAGE)
        return layer(s, y, "a"), layer(s, y, "b")

    return {
        "nothing around": (
            nothing_around,
            "the model input comes before it; no single convolution or linear layer reads it",
        ),
        "output tapped": (output_tapped, "the output of conv has other readers; no single"),
        "other readers": (other_readers, "the output of conv has other readers; no single"),
        "shared weight": (shared_weight, "the weight of conv is shared with other; no single"),
        "computed weight": (computed_weight, "the weight of conv is computed; no single"),
        "channels last": (channels_last, "it normalises axis 1, and fc has its channels on axis 2; no single"),
        "channels last behind": (
            channels_last_behind,
            "the model input comes before it; it normalises axis 1, and fc reads",
        ),
        "several readers behind": (several_readers_behind, "the model input comes before it; no single"),
    }


@pytest.mark.parametrize("case", leftovers())
def test_what_cannot_be_folded_says_why(case: str) -> None:
    draw, why = leftovers()[case]
    sketch = Sketch()
    model, report = fold(sketch, *draw(sketch), technique=FoldBatchNorms(scale_and_shift=False))
    assert report.changed == ()
    assert list(report.left) == ["bn"]
    assert report.left["bn"].startswith(why)
    assert "BatchNormalization" in ops(model.graph)


@pytest.mark.parametrize("case", leftovers())
def test_what_cannot_be_folded_becomes_a_scale_and_a_shift(case: str) -> None:
    draw, why = leftovers()[case]
    sketch = Sketch()
    model, report = fold(sketch, *draw(sketch))
    assert "BatchNormalization" not in ops(model.graph)
    assert report.left == {}
    assert report.changed[0].startswith(f"bn became a scale and a shift: {why}")


@pytest.mark.parametrize("between", ["Relu", "LeakyRelu", "MaxPool", "Sigmoid", "read twice", "negative"])
def test_a_positive_scale_goes_through_what_lets_it_pass(between: str) -> None:
    """Behind a Relu, with padding behind it: the layer before carries the scale, and one addition is left."""
    sketch = Sketch()
    x = sketch.input("x", *IMAGE)
    op = between if between[0].isupper() else "Relu"
    attributes = {"kernel_shape": (3, 3), "strides": (1, 1), "pads": (1,) * 4} if op == "MaxPool" else {}
    act = sketch.node(op, layer(sketch, x, "first"), name="act", shape=IMAGE, **attributes)
    scale = np.array([0.5, 2, 3, -1 if between == "negative" else 1], np.float32)
    rest = [np.full(4, value, np.float32) for value in (0.3, -0.2, 1.5)]
    operands = [sketch.weight(f"bn.{index}", value) for index, value in enumerate((scale, *rest))]
    bn = sketch.node("BatchNormalization", act, *operands, name="bn", shape=IMAGE, epsilon=1e-5)
    last = layer(sketch, bn, "last", pad=1)
    if between == "read twice":
        last = sketch.node("Add", last, act, name="sum", shape=IMAGE)
    folded, report = fold(sketch, last)
    passes = between in ("Relu", "LeakyRelu", "MaxPool")
    assert ("Mul" in ops(folded.graph)) == (not passes)
    assert report.changed[0].startswith(
        "bn became a shift, its scale went into first" if passes else "bn became a scale and a shift"
    )
    assert set(report.rescaled) == ({"first.w"} if passes else set())


def test_a_batch_norm_of_computed_statistics_is_left() -> None:
    sketch = Sketch()
    y = layer(sketch, sketch.input("x", *IMAGE), "conv")
    sketch.batch_norm("unused", y, 4, IMAGE)
    mean = sketch.node("Add", sketch.random("p", 4), sketch.random("q", 4), name="made", shape=(4,))
    constants = ("unused.gamma", "unused.beta", mean, "unused.var")
    y = sketch.node("BatchNormalization", y, *constants, name="bn", shape=IMAGE, epsilon=1e-5)
    raw = sketch.graph(y)
    graph = canonicalize(raw.with_nodes(tuple(node for node in raw.nodes if node.name != "unused")))
    model = checked(graph, sketch.values)
    report = FoldBatchNorms().apply(TechniqueContext(model))
    assert report.left["bn"].startswith("its parameters are no per-channel constants")
    assert model.graph is graph


@pytest.mark.parametrize("behind", [False, True])
def test_a_broken_variance_is_left_as_it_is(behind: bool) -> None:
    sketch = Sketch()
    x = sketch.input("x", *IMAGE)
    y = sketch.batch_norm("bn", x if behind else layer(sketch, x, "conv"), 4, IMAGE)
    y = layer(sketch, y, "conv") if behind else y
    sketch.values["bn.var"][:] = -1e-5  # the square root of 0
    model = checked(canonicalize(sketch.graph(y)), sketch.values)
    with np.errstate(divide="ignore", invalid="ignore"):
        report = FoldBatchNorms().apply(TechniqueContext(model))
    assert report.changed == ()
    assert "the folded weights would not be finite" in report.left["bn"]
    assert sorted(ops(model.graph)) == ["BatchNormalization", "Conv"]


# --- networks -------------------------------------------------------------------------------------------------------


def test_folding_twice_changes_nothing_more() -> None:
    sketch = Sketch()
    y = layer(sketch, sketch.input("x", *IMAGE), "conv")
    y = sketch.batch_norm("bn", y, 4, IMAGE)
    model, _ = fold(sketch, y)
    graph = model.graph
    assert FoldBatchNorms().apply(TechniqueContext(model)) == TechniqueReport("FoldBatchNorms", rescaled={})
    assert model.graph is graph


@pytest.mark.parametrize("seed", range(8))
def test_a_random_network(seed: int) -> None:
    """Layers, batch norms, constants and branches in random order."""
    sketch = Sketch(seed)
    rng = np.random.default_rng(seed)
    tensors = [sketch.input("x", *IMAGE)]
    for index in range(12):
        x = tensors[-1] if rng.random() < 0.8 else tensors[int(rng.integers(len(tensors)))]
        name = f"n{index}"
        kind: Any = rng.choice(["conv", "conv", "depthwise", "bn", "bn", "mul", "add", "relu", "sum"])
        if kind == "conv":
            y = layer(sketch, x, name, pad=int(rng.integers(2)), bias=bool(rng.integers(2)))
        elif kind == "depthwise":
            y = layer(sketch, x, name, group=4, pad=int(rng.integers(2)))
        elif kind == "bn":
            y = sketch.batch_norm(name, x, 4, IMAGE)
        elif kind in ("mul", "add"):
            y = sketch.node(kind.title(), x, sketch.random(f"{name}.c", 4, 1, 1), name=name, shape=IMAGE)
        elif kind == "relu":
            y = sketch.node("Relu", x, name=name, shape=IMAGE)
        else:
            y = sketch.node("Add", x, tensors[0], name=name, shape=IMAGE)
        tensors.append(y)
    last = sketch.node("Softmax", layer(sketch, tensors[-1], "last"), name="softmax", shape=IMAGE, axis=1)
    model, _ = fold(sketch, last)
    assert "BatchNormalization" not in ops(model.graph)
