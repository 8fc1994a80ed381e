"""What follows from constants and goes into a weight is a weight, whatever its size, and is kept once."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import constant, model, node, opened_alike, ops, value

RNG = np.random.default_rng(5)
LARGE = 96  # its square is above what constant folding looks at by itself


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def integers(*numbers):
    return constant("", numbers, np.int64)


def test_weight_norm_over_rows():
    nodes = [
        node("ReduceL2", "v axes", "length", keepdims=1),
        node("Div", "v length", "unit"),
        node("Mul", "g unit", "w"),
        node("MatMul", "x w", "h"),
        node("Add", "h b", "y"),
    ]
    constants = {"v": normal(LARGE, LARGE), "g": normal(1, LARGE), "b": normal(LARGE)}
    constants["axes"] = constant("axes", [0], np.int64)
    proto = model(nodes, [value("x", ["n", 3, LARGE])], [value("y", ["n", 3, LARGE])], constants, opset=18)
    opened = opened_alike(proto, {"x": normal(2, 3, LARGE)})
    assert ops(opened) == ["Linear"]
    assert opened.graph.nodes[0].inputs[1:] == ("w", "b")
    assert set(opened.float_model.graph.initializers) == {"w", "b"}, "the parts that it was made of are gone"


def test_standardised_kernels():
    nodes = [
        node("ReduceMean", "v", "m", axes=[1, 2, 3]),
        node("Sub", "v m", "c"),
        node("Mul", "c c", "q"),
        node("ReduceMean", "q", "s", axes=[1, 2, 3]),
        node("Add", "s e", "p"),
        node("Sqrt", "p", "r"),
        node("Div", "c r", "w"),
        node("Conv", "x w", "y", pads=[1, 1, 1, 1]),
    ]
    constants = {"v": normal(32, 16, 3, 3), "e": np.float32(1e-5)}
    proto = model(nodes, [value("x", ["n", 16, 6, 6])], [value("y", ["n", 32, 6, 6])], constants)
    opened = opened_alike(proto, {"x": normal(2, 16, 6, 6)}, atol=1e-4)
    assert ops(opened) == ["Conv"]
    assert opened.graph.nodes[0].inputs[1] == "w"


def test_slices_of_a_packed_projection():
    parts = {"q": (0, LARGE), "k": (LARGE, 2 * LARGE), "v": (2 * LARGE, 3 * LARGE)}
    constants = {"packed": normal(3 * LARGE, LARGE), "axis": constant("axis", [0], np.int64)}
    nodes = []
    for name, (start, end) in parts.items():
        constants[f"{name}s"] = constant(f"{name}s", [start], np.int64)
        constants[f"{name}e"] = constant(f"{name}e", [end], np.int64)
        nodes.append(node("Slice", f"packed {name}s {name}e axis", f"{name}w"))
        nodes.append(node("Transpose", f"{name}w", f"{name}t", perm=[1, 0]))
        nodes.append(node("MatMul", f"x {name}t", name))
    outputs = [value(name, ["n", 3, LARGE]) for name in parts]
    opened = opened_alike(model(nodes, [value("x", ["n", 3, LARGE])], outputs, constants), {"x": normal(2, 3, LARGE)})
    assert ops(opened) == ["Linear"] * 3
    assert {"qw", "kw", "vw"} == set(opened.graph.weights)
    assert "packed" not in opened.float_model.graph.initializers


def test_parts_of_a_split():
    nodes = [node("Split", "packed", "a b", axis=1), node("MatMul", "x a", "h"), node("MatMul", "h b", "y")]
    proto = model(nodes, [value("x", ["n", LARGE])], [value("y", ["n", LARGE])], {"packed": normal(LARGE, 2 * LARGE)})
    opened = opened_alike(proto, {"x": normal(4, LARGE)}, atol=1e-3)
    assert ops(opened) == ["Linear", "Linear"]
    assert set(opened.graph.weights) == {"a", "b"}


def test_lora_merged_into_an_embedding_and_a_layer():
    nodes = [
        node("MatMul", "up down", "delta"),
        node("Mul", "delta scale", "scaled"),
        node("Add", "base scaled", "w"),
        node("Transpose", "w", "wt", perm=[1, 0]),
        node("Gather", "w ids", "e"),
        node("MatMul", "e wt", "y"),
    ]
    constants = {"up": normal(LARGE, 4), "down": normal(4, LARGE), "base": normal(LARGE, LARGE), "scale": np.float32(2)}
    proto = model(nodes, [value("ids", ["n", 3], 7)], [value("y", ["n", 3, LARGE])], constants)
    opened = opened_alike(proto, {"ids": RNG.integers(0, LARGE, (2, 3))}, atol=1e-3)
    assert ops(opened) == ["Gather", "Linear"]
    assert set(opened.float_model.graph.initializers) == {"w"}, "one table for both readers"


@pytest.mark.parametrize("opset", [9, 13, 21])
def test_a_kernel_spread_over_channels(opset):
    nodes = [node("Expand", "k shape", "w"), node("Conv", "x w", "y", group=128)]
    constants = {"k": normal(1, 1, 7, 7), "shape": constant("shape", [128, 1, 7, 7], np.int64)}
    proto = model(nodes, [value("x", ["n", 128, 8, 8])], [value("y", ["n", 128, 2, 2])], constants, opset)
    assert ops(opened_alike(proto, {"x": normal(2, 128, 8, 8)}, atol=1e-4)) == ["Conv"]


def test_gates_of_a_scaled_lstm():
    nodes = [node("Mul", "v g", "w"), node("LSTM", "x w r", "y", hidden_size=24)]
    constants = {"v": normal(1, 96, 48), "g": normal(1, 96, 1), "r": normal(1, 96, 24) * 0.2}
    proto = model(nodes, [value("x", [5, "n", 48])], [value("y", [5, 1, "n", 24])], constants)
    opened = opened_alike(proto, {"x": normal(5, 2, 48)})
    assert [op for op in ops(opened) if op != "Reshape"] == ["LSTM"]
    assert "w" in opened.graph.weights


def test_what_grows_beside_the_weights_is_left_to_the_runtime():
    """A large mask is made when it is needed; a random tensor is another each time."""
    nodes = [node("Expand", "one shape", "mask"), node("MatMul", "x w", "h"), node("Add", "h mask", "y")]
    constants = {"one": np.float32([[[1]]]), "shape": constant("shape", [1, 128, 64], np.int64), "w": normal(64, 64)}
    proto = model(nodes, [value("x", ["n", 128, 64])], [value("y", ["n", 128, 64])], constants)
    opened = opened_alike(proto, {"x": normal(2, 128, 64)}, atol=1e-4)
    assert "Expand" in ops(opened)


def test_a_tensor_that_is_random_stays_random():
    nodes = [node("RandomNormalLike", "w", "noise"), node("Mul", "noise zero", "none"), node("Add", "w none", "v")]
    nodes.append(node("MatMul", "x v", "y"))
    proto = model(nodes, [value("x", ["n", 8])], [value("y", ["n", 8])], {"w": normal(8, 8), "zero": np.float32(0)})
    assert "RandomNormalLike" in ops(opened_alike(proto, {"x": normal(2, 8)}))


def test_a_mask_that_is_the_logarithm_of_zeros_is_computed_in_silence():
    nodes = [
        node("MatMul", "x w", "h"),
        node("Log", "seen", "mask"),
        node("Add", "h mask", "m"),
        node("Softmax", "m", "y"),
    ]
    constants = {"w": normal(6, 6), "seen": np.tril(np.ones((6, 6)))}
    proto = model(nodes, [value("x", ["n", 6, 6])], [value("y", ["n", 6, 6])], constants)
    assert "Log" not in ops(opened_alike(proto, {"x": normal(2, 6, 6)}))
