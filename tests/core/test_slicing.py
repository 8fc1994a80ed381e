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


@pytest.mark.parametrize("group", [1, 2])
def test_groups_lose_the_same_places(group: int) -> None:
    """A convolution in groups behind one, and the other way round: each of its two groups keeps one channel."""
    sketch = Sketch()
    y = conv(sketch, image(sketch), "first", group=group)
    model = model_of(sketch, conv(sketch, conv(sketch, y, "second", group=3 - group), "last", out=3))
    sliced = check(model, "first", masked(model, "first", KEEP))
    grouped = "second" if group == 1 else "first"
    assert sliced.graph.node(grouped).attributes["group"] == 2
    assert sliced.graph.weights[f"{grouped}.w"].shape[0] == (4 if group == 1 else 2)


def test_channels_that_go_together_are_named() -> None:
    sketch = Sketch()
    y = conv(sketch, conv(sketch, image(sketch), "first"), "second", group=2)
    message = "channels [1, 3] of 'first' go together or not at all, and not all of them are kept"
    refused(sketch, conv(sketch, y, "last"), "first", message, (0, 2, 3))


@pytest.mark.parametrize(
    ("op", "shape", "attributes", "message"),
    [
        ("Softmax", IMAGE, {"axis": 1}, "node 'block' (Softmax) mixes channels"),
        ("Tile", IMAGE, {"repeats": (1, 1, 1, 1)}, "node 'block' (Tile) blocks the removal of channels"),
        ("Split", ("N", 2, 6, 6), {"axis": 1}, "node 'block' (Split) blocks the removal of channels"),
    ],
)
def test_ops_that_mix_or_move_channels_block(op: str, shape: Any, attributes: dict[str, Any], message: str) -> None:
    sketch = Sketch()
    y = conv(sketch, image(sketch), "first")
    y = sketch.node(op, y, name="block", shape=shape, **attributes)
    refused(sketch, sketch.node("Relu", y, name="last", shape=shape), "first", message)


def test_a_concatenation_loses_one_part() -> None:
    """What stands beside it may be whatever it is, also an input."""
    sketch = Sketch()
    x = image(sketch)
    y = sketch.node("Concat", conv(sketch, x, "first"), x, name="cat", shape=("N", 8, 6, 6), axis=1)
    model = model_of(sketch, conv(sketch, y, "last", source=8))
    reference = masked(model, "first", KEEP)
    sliced = check(model, "first", reference)
    assert sliced.graph.weights["last.w"].shape == (4, 6, 1, 1)
    np.testing.assert_array_equal(sliced.weight("last.w"), reference.weight("last.w")[:, [0, 2, 4, 5, 6, 7]])


def test_flattened_features_go_channel_by_channel() -> None:
    sketch = Sketch()
    y = sketch.node("Reshape", conv(sketch, image(sketch), "first"), name="flat", shape=("N", 144))
    y = sketch.node("Linear", y, sketch.random("fc.w", 3, 144), name="fc", shape=("N", 3))
    refused(sketch, y, "flat", "of 'flat' go together or not at all, and not all of them are kept")
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
    refused(sketch, y, "first", "node 'flat' (Reshape) joins or splits it: no channel of it can go by itself")


def test_what_would_leave_nothing_blocks() -> None:
    """A gate of two channels, each for one half: the half that is left has none of its own."""
    sketch = Sketch()
    x = sketch.input("x", "N", 2)
    wide = sketch.node("Linear", x, sketch.random("w", 4, 2), name="first", shape=("N", 4))
    part = sketch.node("Slice", wide, name="part", shape=("N", 2), starts=(0,), ends=(2,), axes=(1,), steps=(1,))
    y = sketch.node("Linear", part, sketch.random("fc.w", 3, 2), name="fc", shape=("N", 3))
    y = sketch.node("Concat", y, wide, name="cat", shape=("N", 7), axis=1)
    y = sketch.node("Linear", y, sketch.random("last.w", 3, 7), name="last", shape=("N", 3))
    refused(sketch, y, "first", "nothing would be left of axis 1 of 'part'", (2, 3))
