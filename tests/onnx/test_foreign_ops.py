"""What stands behind an operator that is not taken apart is quantized: the runtime says what comes out of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from small_models import MICROSOFT, constant, model, node, opened_alike, value

import isobit
from isobit.errors import IsobitError
from isobit.graph import Weight

RNG = np.random.default_rng(11)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


FOREIGN = {
    "rotary positions": ("RotaryEmbedding", "h positions cos sin", {"num_heads": 4}),
    "a cast of layers": ("ExpandDims", "h axis", {}),
    "parts": ("GatherND", "h parts", {}),
    "weights of four bits": ("MatMulNBits", "h packed scales", {"K": 16, "N": 16, "bits": 4, "block_size": 16}),
}


@pytest.fixture(params=FOREIGN)
def proto(request: Any) -> onnx.ModelProto:
    op, inputs, settings = FOREIGN[request.param]
    angles = np.outer(np.arange(8), [1, 0.1]).astype(np.float32)
    constants = {
        "w": normal(16, 16), "v": normal(16, 4), "cos": np.cos(angles), "sin": np.sin(angles),
        "positions": constant("positions", [0], np.int64), "axis": constant("axis", 1, np.int32),
        "parts": constant("parts", [[0, 1], [1, 2]], np.int64), "scales": np.abs(normal(16)),
        "packed": constant("packed", RNG.integers(0, 256, (16, 1, 8)), np.uint8),
    }  # fmt: skip
    nodes = [node("MatMul", "x w", "h"), node(op, inputs, "f", MICROSOFT, **settings), node("MatMul", "f v", "y")]
    used = {name for n in nodes for name in n.input}
    held = {name: array for name, array in constants.items() if name in used}
    return model(nodes, [value("x", ["n", 6, 16])], [value("y", None)], held)


def test_the_layer_behind_it_is_quantized(proto: onnx.ModelProto) -> None:
    x = normal(2, 6, 16)
    opened = opened_alike(proto, {"x": x}, atol=1e-4)
    is_stored = "packed" in {value.name for value in proto.graph.initializer}
    (note,) = opened.graph.notes
    assert ("its weight is integers already" if is_stored else "does not take it apart") in note
    assert opened.graph.tensors["n_f"].dtype == "float32"
    assert opened.graph.tensors["n_f"].shape is not None
    placed = isobit.QuantSim(proto, target="onnxruntime-cpu").plan.placements
    assert {Weight("w"), Weight("v")} <= placed.keys()


def test_an_operator_that_nobody_knows_is_no_accident() -> None:
    nodes = [node("Mystery", "x", "h", "of.somebody"), node("MatMul", "h w", "y")]
    proto = model(nodes, [value("x", ["n", 4])], [value("y", ["n", 3])], {"w": normal(4, 3)})
    with pytest.raises(IsobitError, match="Mystery"):
        isobit.QuantSim(proto).run({"x": normal(2, 4)})
