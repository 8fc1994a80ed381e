"""Tables of embeddings in a written file are looked up in integers, bit for bit as the simulator rounds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto
from small_models import model, node, value

import isobit
from isobit.encodings import QuantSpec
from isobit.quantsim import read_encodings

FORMATS = (
    *(None, "int8 per-channel", "int16 per-channel", "int8 block=16", "uint8 per-tensor", "uint16 asymmetric"),
    *(
        "int4 per-tensor",
        "int4 per-channel",
        "int4 block=16",
        "uint4 asymmetric per-channel",
        "uint4 asymmetric block=8",
    ),
    *("int3 per-channel", "int6 block=16", "int8 block=32", "int4 block=32"),  # the last two of whole rows
)
ROWS, WIDTH = 40, 32
IDS = np.random.default_rng(5).integers(0, ROWS, (6, 3))
RNG = np.random.default_rng(0)
TABLE = (RNG.standard_normal((ROWS, WIDTH)) * RNG.uniform(0.1, 3, (ROWS, 1))).astype(np.float32)


def embedding(tied: bool) -> onnx.ModelProto:
    """Rows of a table, projected; `tied`: by the table itself, as language models do."""
    width = ROWS if tied else 4
    weights = {"table": TABLE} | ({} if tied else {"w": RNG.standard_normal((WIDTH, 4)).astype(np.float32)})
    head = [node("Transpose", "table", "w", perm=[1, 0])] if tied else []
    nodes = [node("Gather", "table ids", "rows"), *head, node("MatMul", "rows w", "y")]
    return model(nodes, [value("ids", ["n", 3], TensorProto.INT64)], [value("y", ["n", 3, width])], weights)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("weights", FORMATS)
def test_rows_are_picked_before_they_become_floats(tmp_path: Path, weights: str | None, tied: bool) -> None:
    """No DequantizeLinear computes the whole table, the file gives the simulator's bits, and reads back as written."""
    given = embedding(tied)
    sim = isobit.QuantSim(given, weights=weights)
    sim.calibrate([{"ids": IDS}])
    path = sim.export(tmp_path)["model"]
    onnx.checker.check_model(path, full_check=True)
    graph = onnx.load(path).graph
    readers = {name: reader for reader in graph.node for name in reader.input}
    lookup = next(n for n in graph.node if n.name == "n_rows")
    is_packed = weights is not None and QuantSpec.parse(weights).bits <= 4
    assert readers[lookup.output[0]].op_type == ("Cast" if is_packed else "DequantizeLinear")
    whole = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0].startswith("table")]
    assert len(whole) == int(tied)  # for the product
    assert [str(site) for site in read_encodings(path) if str(site).startswith("table")] == ["table"]
    assert {tensor.name for tensor in graph.initializer} <= readers.keys()  # nothing is left over
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    assert np.array_equal(session.run(["y"], {"ids": IDS})[0], sim.run({"ids": IDS})["y"])
    again = read_encodings(path, sim)
    assert dict(again) == dict(sim.encodings)
    assert not again.unmapped


@pytest.mark.parametrize("shape", [[], ["n"], ["n", 2, 1]], ids=str)
@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize(
    "weights", ["int8 per-channel", "int8 block=8", "uint4 asymmetric per-channel", "int4 block=32"]
)
def test_any_index_picks_the_rows_of_any_table(tmp_path: Path, weights: str, rows: int, shape: list[int | str]) -> None:
    """One row, which an index without axes picks, or none at all: types and sizes of the file hold, and it runs."""
    table = RNG.standard_normal((rows, WIDTH)).astype(np.float32)
    given = model(
        [node("Gather", "table ids", "rows")],
        [value("ids", shape, TensorProto.INT64)],
        [value("rows", [*shape, WIDTH])],
        {"table": table},
    )
    sim = isobit.QuantSim(given, weights=weights)
    sizes = [5 if size == "n" else int(size) for size in shape]
    ids = RNG.integers(-rows, rows, sizes)
    sim.calibrate([{"ids": ids}])
    path = sim.export(tmp_path)["model"]
    onnx.checker.check_model(path, full_check=True)
    levels = onnxruntime.GraphOptimizationLevel
    for level in (levels.ORT_DISABLE_ALL, levels.ORT_ENABLE_ALL):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        assert np.array_equal(session.run(["rows"], {"ids": ids})[0], sim.run({"ids": ids})["rows"])
        if shape:
            assert session.run(["rows"], {"ids": ids[:0]})[0].shape == (0, *sizes[1:], WIDTH)


def test_a_table_of_4_bits_is_in_the_file_once_for_all_that_pick_from_it(tmp_path: Path) -> None:
    nodes = [node("Gather", "table ids", "a"), node("Gather", "table jds", "b"), node("Add", "a b", "y")]
    inputs = [value(name, ["n"], TensorProto.INT64) for name in ("ids", "jds")]
    sim = isobit.QuantSim(model(nodes, inputs, [value("y", ["n", WIDTH])], {"table": TABLE}), weights="int4 block=16")
    feeds = {"ids": IDS[:, 0], "jds": IDS[:, 1]}
    sim.calibrate([feeds])
    path = sim.export(tmp_path)["model"]
    assert [t.name for t in onnx.load(path).graph.initializer if list(t.dims) == [ROWS, WIDTH // 2]] == [
        "table_quantized"
    ]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(["y"], feeds)[0], sim.run(feeds)["y"])
