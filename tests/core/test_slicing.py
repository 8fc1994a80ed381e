"""Removing channels: the sliced model computes what the whole model computes on the channels that stay."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from numpy_backend import NumpyModel, checked
from sketch import Sketch

from isobit.backend import CheckedModel
from isobit.canonical import canonicalize
from isobit.edits import Slice
from isobit.errors import EditError

IMAGE = ("N", 4, 6, 6)
KEEP = (0, 2)


def image(sketch: Sketch) -> str:
    return sketch.input("x", *IMAGE)


def conv(sketch: Sketch, x: str, name: str, out: int = 4, source: int = 4, kernel: int = 1, **attributes: Any) -> str:
    per_group = source // int(attributes.setdefault("group", 1))
    operands = (sketch.random(f"{name}.w", out, per_group, kernel, kernel), sketch.random(f"{name}.b", out))
    pads = (kernel // 2,) * 4
    return sketch.node("Conv", x, *operands, name=name, shape=("N", out, 6, 6), pads=pads, **attributes)


def model_of(sketch: Sketch, *outputs: str) -> CheckedModel:
    return checked(canonicalize(sketch.graph(*outputs)), sketch.values)


def masked(model: CheckedModel, producer: str, keep: tuple[int, ...], *silenced: str) -> CheckedModel:
    """The reference: a copy whose removed channels are zero, by zero weights and biases."""
    copied = model.copy()
    assert isinstance(copied.inner, NumpyModel)
    removed = [c for c in range(model.weight(f"{producer}.w").shape[0]) if c not in keep]
    for layer in (producer, *silenced):
        for part in ("w", "b"):
            copied.inner.weights[f"{layer}.{part}"][removed] = 0
    return copied


def check(model: CheckedModel, tensor: str, reference: CheckedModel, keep: tuple[int, ...] = KEEP) -> CheckedModel:
    batch = {"x": np.random.default_rng(1).standard_normal((2, 4, 6, 6)).astype(np.float32)}
    model.edit([Slice(tensor, keep)])
    for name, value in model.run(batch).items():
        np.testing.assert_allclose(value, reference.run(batch)[name], rtol=1e-5, atol=1e-5)
    for name, info in model.graph.weights.items():
        assert model.weight(name).shape == info.shape
    return model


def test_through_activations_and_pooling_to_a_linear_layer() -> None:
    sketch = Sketch()
    y = conv(sketch, image(sketch), "first")
    y = sketch.node("PRelu", y, sketch.random("slope", 4), name="prelu", shape=IMAGE)
    y = sketch.node("MaxPool", y, name="pool", shape=("N", 4, 3, 3), kernel_shape=(2, 2), strides=(2, 2))
    y = sketch.node("Reshape", y, name="flat", shape=("N", 36))
    y = sketch.node("Linear", y, sketch.random("fc.w", 3, 36), name="fc", shape=("N", 3))
    model = model_of(sketch, y)
    sliced = check(model, "prelu", masked(model, "first", KEEP))
    shapes = {name: info.shape for name, info in sliced.graph.weights.items()}
    assert shapes == {"first.w": (2, 4, 1, 1), "first.b": (2,), "slope": (2,), "fc.w": (3, 18)}
    assert sliced.graph.tensors["flat"].shape == ("N", 18)
    assert sliced.graph.node("flat").attributes["shape"] == (-1, 18)


def test_a_residual_takes_both_branches_along() -> None:
    sketch = Sketch()
    x = image(sketch)
    total = sketch.node("Add", conv(sketch, x, "left"), conv(sketch, x, "right"), name="sum", shape=IMAGE)
    relu = sketch.node("Relu", total, name="relu", shape=IMAGE)
    model = model_of(sketch, conv(sketch, relu, "last", out=3))
    sliced = check(model, "left", masked(model, "left", KEEP, "right"))
    assert sliced.graph.weights["right.w"].shape == (2, 4, 1, 1)
    assert sliced.graph.weights["last.w"].shape == (3, 2, 1, 1)


def test_depthwise_convolutions_shrink_their_groups() -> None:
    sketch = Sketch()
    y = conv(sketch, image(sketch), "first")
    y = conv(sketch, y, "depth", group=4, kernel=3)
    model = model_of(sketch, conv(sketch, y, "last", out=3))
    sliced = check(model, "depth", masked(model, "first", KEEP, "depth"))
    assert sliced.graph.node("depth").attributes["group"] == 2
    assert sliced.graph.weights["depth.w"].shape == (2, 1, 3, 3)


def test_batch_norms_and_constants_beside_them_shrink() -> None:
    sketch = Sketch()
    y = conv(sketch, image(sketch), "first")
    y = sketch.batch_norm("bn", y, 4, IMAGE)
    y = sketch.node("Mul", sketch.random("s", 4, 1, 1), y, name="mul", shape=IMAGE)
    y = sketch.node("Add", y, sketch.weight("one", 1.0), name="add", shape=IMAGE)
    model = model_of(sketch, conv(sketch, y, "last", out=3))
    reference = model.copy()
    assert isinstance(reference.inner, NumpyModel)
    reference.inner.weights["last.w"][:, [1, 3]] = 0
    sliced = check(model, "add", reference)
    assert sliced.graph.weights["bn.mean"].shape == (2,)
    assert sliced.graph.weights["s"].shape == (2, 1, 1)
    assert sliced.graph.weights["one"].shape == ()


@pytest.mark.parametrize("gate_channels", [1, 4])
def test_gates_broadcast_or_shrink_along(gate_channels: int) -> None:
    sketch = Sketch()
    x = image(sketch)
    gate = sketch.node(
        "Sigmoid", conv(sketch, x, "gate", out=gate_channels), name="open", shape=("N", gate_channels, 6, 6)
    )
    product = sketch.node("Mul", conv(sketch, x, "first"), gate, name="mul", shape=IMAGE)
    model = model_of(sketch, conv(sketch, product, "last", out=3))
    sliced = check(model, "mul", masked(model, "first", KEEP))
    assert sliced.graph.weights["gate.w"].shape[0] == (1 if gate_channels == 1 else 2)


def test_transposed_convolutions_on_both_sides() -> None:
    sketch = Sketch()
    y = conv(sketch, image(sketch), "first")
    operands = (sketch.random("up.w", 4, 5, 1, 1), sketch.random("up.b", 5))  # ONNX: (in, out, *kernel)
    up = sketch.node("ConvTranspose", y, *operands, name="up", shape=("N", 5, 6, 6))
    raw = sketch.graph(conv(sketch, up, "last", out=3, source=5))
    graph = canonicalize(raw)
    values = {**sketch.values, "up.w": sketch.values["up.w"].swapaxes(0, 1)}
    model = checked(graph, values)
    sliced = check(model, "first", masked(model, "first", KEEP))
    assert sliced.graph.weights["up.w"].shape == (5, 2, 1, 1)
    reference = masked(sliced, "up", (1, 4))
    assert check(sliced, "up", reference, (1, 4)).graph.weights["last.w"].shape == (3, 2, 1, 1)


def test_order_and_repetition_of_the_kept_do_not_matter() -> None:
    sketch = Sketch()
    model = model_of(sketch, conv(sketch, conv(sketch, image(sketch), "first"), "last", out=3))
    check(model, "first", masked(model, "first", KEEP), (2, 0, 2))


# --- refusals -------------------------------------------------------------------------------------------------------


def refused(sketch: Sketch, output: str, tensor: str, message: str, keep: tuple[int, ...] = KEEP) -> None:
    model = model_of(sketch, output)
    graph = model.graph
    weights = {name: model.weight(name) for name in graph.weights}
    with pytest.raises(EditError, match=re.escape(message)):
        model.edit([Slice(tensor, keep)])
    assert model.graph is graph
    for name, value in weights.items():
        np.testing.assert_array_equal(model.weight(name), value)


@pytest.mark.parametrize(
    ("tensor", "keep", "message"),
    [
        ("nothing", KEEP, "tensor 'nothing' is not in the graph, or its channels are unknown"),
        ("first", (), "channels to keep of 'first' must be some of its 4 channels, not ()"),
        ("first", (0, 4), "must be some of its 4 channels, not (0, 4)"),
        ("first", (-1,), "must be some of its 4 channels"),
        ("x", KEEP, "the channels of model input 'x' cannot be removed"),
        ("last", KEEP, "the channels of model output 'last' cannot be removed"),
    ],
)
def test_tensors_that_cannot_be_sliced(tensor: str, keep: tuple[int, ...], message: str) -> None:
    sketch = Sketch()
    refused(sketch, conv(sketch, conv(sketch, image(sketch), "first"), "last"), tensor, message, keep)


def test_a_residual_with_the_input_blocks() -> None:
    sketch = Sketch()
    x = image(sketch)
    total = sketch.node("Add", conv(sketch, x, "first"), x, name="sum", shape=IMAGE)
    refused(sketch, conv(sketch, total, "last"), "first", "the channels of model input 'x' cannot be removed")


def test_grouped_convolutions_block() -> None:
    for first, tensor in ((1, "first"), (2, "first")):
        sketch = Sketch()
        y = conv(sketch, image(sketch), "first", group=first)
        y = conv(sketch, y, "second", group=3 - first)
        message = f"node '{'second' if first == 1 else 'first'}' is a grouped convolution"
        refused(sketch, conv(sketch, y, "last"), tensor, message)


@pytest.mark.parametrize(
    ("op", "shape", "attributes", "message"),
    [
        ("Softmax", IMAGE, {"axis": -1}, "node 'block' (Softmax) mixes channels"),
        (
            "Transpose",
            ("N", 6, 6, 4),
            {"perm": (0, 2, 3, 1)},
            "node 'block' (Transpose) blocks the removal of channels",
        ),
        ("Reshape", ("N", 2, 72), {}, "node 'block' (Reshape) blocks the removal of channels: it is no flattening"),
        ("Split", ("N", 2, 6, 6), {"axis": 1}, "node 'block' (Split) blocks the removal of channels"),
    ],
)
def test_ops_that_mix_or_move_channels_block(op: str, shape: Any, attributes: dict[str, Any], message: str) -> None:
    sketch = Sketch()
    y = conv(sketch, image(sketch), "first")
    y = sketch.node(op, y, name="block", shape=shape, **attributes)
    refused(sketch, sketch.node("Relu", y, name="last", shape=shape), "first", message)


def test_a_concatenation_blocks() -> None:
    sketch = Sketch()
    x = image(sketch)
    y = sketch.node("Concat", conv(sketch, x, "first"), x, name="cat", shape=("N", 8, 6, 6), axis=1)
    refused(sketch, conv(sketch, y, "last", source=8), "first", "node 'cat' (Concat) blocks the removal of channels")


def test_flattened_features_go_channel_by_channel() -> None:
    sketch = Sketch()
    y = sketch.node("Reshape", conv(sketch, image(sketch), "first"), name="flat", shape=("N", 144))
    y = sketch.node("Linear", y, sketch.random("fc.w", 3, 144), name="fc", shape=("N", 3))
    refused(sketch, y, "flat", "node 'flat' (Reshape): only whole channels can be removed before it")
    model = model_of(sketch, y)
    model.edit([Slice("flat", tuple(range(36)))])
    assert model.graph.weights["first.w"].shape == (1, 4, 1, 1)


def test_flattened_sequences_block() -> None:
    """Their channels come last, so a flattening interleaves them."""
    sketch = Sketch()
    x = sketch.input("x", "N", 5, 8)
    y = sketch.node("Linear", x, sketch.random("w", 4, 8), name="first", shape=("N", 5, 4))
    y = sketch.node("Reshape", y, name="flat", shape=("N", 20))
    y = sketch.node("Linear", y, sketch.random("fc.w", 3, 20), name="fc", shape=("N", 3))
    refused(sketch, y, "first", "node 'flat' (Reshape) blocks the removal of channels: it is no flattening")


def test_two_different_demands_block() -> None:
    """A pooled tensor and a flattened one: a channel is one index of the first and several of the second."""
    sketch = Sketch()
    x = sketch.input("x", "N", 2, 2, 1)
    y = sketch.node("Conv", x, sketch.random("w", 2, 2, 1, 1), name="first", shape=("N", 2, 2, 1))
    flat = sketch.node("Reshape", y, name="flat", shape=("N", "F"))
    pool = sketch.node("GlobalAveragePool", y, name="pool", shape=("N", 2), keepdims=0)
    wide = sketch.node("Add", flat, pool, name="sum", shape=("N", "F"))  # no network does this
    message = "would keep two different sets of channels"
    refused(
        sketch,
        sketch.node("Linear", wide, sketch.random("fc.w", 3, 4), name="fc", shape=("N", 3)),
        "first",
        message,
        (0,),
    )
