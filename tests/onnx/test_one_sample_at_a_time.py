"""Files that say an open batch and compute one sample alone: the error names the size that works."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_models import constant, model, node, value

import isobit
from isobit.errors import ModelError

RNG = np.random.default_rng(0)
MATRIX = {"w": RNG.standard_normal((8, 8))}


def reshaped(rows: int | str = 4) -> onnx.ModelProto:
    """A reshape to the batch of the trace."""
    shape = {"s": constant("s", [1, 32], np.int64)}
    nodes = [node("MatMul", "x w", "h"), node("Reshape", "h s", "r"), node("Softmax", "r", "y")]
    return model(nodes, [value("x", ["n", rows, 8])], [value("y", ["n", 32])], MATRIX | shape)


def state_of_one() -> onnx.ModelProto:
    """A recurrent layer whose first state is an input of one sample."""
    weights = {"W": RNG.standard_normal((1, 24, 8)), "R": RNG.standard_normal((1, 24, 8))}
    nodes = [
        node("MatMul", "x w", "h"),
        node("Transpose", "h", "t", perm=[1, 0, 2]),
        onnx.helper.make_node("GRU", ["t", "W", "R", "", "", "state"], ["seq", "y"], hidden_size=8),
    ]
    inputs = [value("x", ["n", 4, 8]), value("state", [1, 1, 8])]
    return model(nodes, inputs, [value("y", [1, "n", 8])], MATRIX | weights)


@pytest.mark.parametrize("make", [reshaped, state_of_one])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_size_that_works_is_named(make, capfd) -> None:
    proto = make()
    data = {"x": RNG.standard_normal((16, 4, 8)).astype(np.float32)}
    if len(proto.graph.input) > 1:
        data["state"] = np.zeros((1, 1, 8), np.float32)
    with pytest.raises(ModelError, match="runs the first sample alone.* or --batch-size 1"):
        isobit.quantize(proto, data, recipe="basic", progress=False)
    assert "onnxruntime" not in capfd.readouterr().err  # its log would repeat what the error says
    assert isobit.quantize(proto, data, recipe="basic", batch_size=1, progress=False).report.coverage.weights > 0.9


def test_a_batch_that_no_size_mends_gets_no_such_advice() -> None:
    data = RNG.standard_normal((16, 5, 8)).astype(np.float32)  # five rows where the shape of the trace has four
    with pytest.raises(ModelError, match="failed on a batch") as found:
        isobit.quantize(reshaped("rows"), data, recipe="basic", progress=False)
    assert "batch-size" not in str(found.value)


def test_a_sample_whose_values_fail_gets_no_such_advice() -> None:
    """A number that a table has no row for fails in batches of one as well."""
    nodes = [node("Gather", "w ids", "h"), node("MatMul", "h w", "y")]
    proto = model(nodes, [value("ids", ["n", 4], onnx.TensorProto.INT64)], [value("y", ["n", 4, 8])], MATRIX)
    ids = RNG.integers(0, 8, (16, 4))
    ids[5, 2] = 8
    with pytest.raises(ModelError, match="failed on a batch") as found:
        isobit.quantize(proto, ids, recipe="basic", progress=False)
    assert "batch-size" not in str(found.value)
