"""Weights that layers in bodies of Loop, Scan and If read are stored as integers; the layers run in float."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from small_models import constant, model, node, opened_alike, value

import isobit
from isobit.errors import CoverageWarning
from isobit.graph import Weight

RNG = np.random.default_rng(21)
INT64, BOOL = TensorProto.INT64, TensorProto.BOOL
Feeds = Mapping[str, np.ndarray]


def normal(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


#: What a pass makes of its state, and the channel axis of the weight.
STEPS = {
    "product": ([node("MatMul", "s w", "m")], 1),
    "turned": ([node("Gemm", "s w", "m", transB=1)], 0),
    "transposed inside": ([node("Transpose", "w", "t", perm=[1, 0]), node("MatMul", "s t", "m")], 1),
    "two directions": ([node("MatMul", "s w", "r"), node("Gemm", "r w", "m", transB=1)], None),
}


def repeated(step: str) -> tuple[onnx.ModelProto, Feeds]:
    """A Loop whose number of passes is an input."""
    nodes = [*STEPS[step][0], node("Tanh", "m", "next"), node("Identity", "go", "go_on")]
    inputs = [value("i", [], INT64), value("go", [], BOOL), value("s", ["n", 6])]
    body = helper.make_graph(nodes, "body", inputs, [value("go_on", [], BOOL), value("next", ["n", 6])])
    outer = [
        node("MatMul", "x first", "h"),
        node("Loop", "count - h", "z", body=body),
        node("MatMul", "z last", "y"),
    ]
    constants = {"first": normal(6, 6), "w": normal(6, 6), "last": normal(6, 3)}
    proto = model(outer, [value("x", ["n", 6]), value("count", [], INT64)], [value("y", ["n", 3])], constants)
    return proto, {"x": normal(16, 6), "count": np.array(3)}


def bags() -> tuple[onnx.ModelProto, Feeds]:
    """An embedding bag as the TorchScript exporter writes it: a Loop over offsets, with a Gather of the table."""
    nodes = [
        node("Gather", "ends i", "end"),
        node("Gather", "starts i", "start"),
        node("Unsqueeze", "start axis", "from"),
        node("Unsqueeze", "end axis", "to"),
        node("Slice", "words from to axis", "part"),
        node("Gather", "table part", "rows"),
        node("ReduceMean", "rows", "mean", axes=[0], keepdims=0),
        node("Identity", "go", "go_on"),
    ]
    body = helper.make_graph(
        nodes, "body", [value("i", [], INT64), value("go", [], BOOL)], [value("go_on", [], BOOL), value("mean", [8])]
    )
    outer = [
        node("Shape", "starts", "sizes"),
        node("Gather", "sizes zero", "count"),
        node("Loop", "count true", "z", body=body),
        node("MatMul", "z last", "y"),
    ]
    constants = {
        "axis": constant("axis", [0], np.int64),
        "zero": constant("zero", 0, np.int64),
        "true": constant("true", True, bool),
        "table": normal(50, 8),
        "last": normal(8, 3),
    }
    inputs = [value("words", ["t"], INT64), value("starts", ["b"], INT64), value("ends", ["b"], INT64)]
    feeds = {"words": RNG.integers(0, 50, 12), "starts": np.array([0, 5, 8]), "ends": np.array([5, 8, 12])}
    return model(outer, inputs, [value("y", ["b", 3])], constants), feeds


def scanned() -> tuple[onnx.ModelProto, Feeds]:
    """A recurrent cell in a Scan of open length."""
    nodes = [
        node("MatMul", "part w", "a"),
        node("MatMul", "s u", "b"),
        node("Add", "a b", "c"),
        node("Tanh", "c", "next"),
        node("Identity", "next", "out"),
    ]
    body = helper.make_graph(
        nodes, "body", [value("s", [1, 6]), value("part", [1, 4])], [value("next", [1, 6]), value("out", [1, 6])]
    )
    outer = [node("Scan", "begin x", "end z", body=body, num_scan_inputs=1), node("MatMul", "z last", "y")]
    constants = {"begin": np.zeros((1, 6)), "w": normal(4, 6), "u": normal(6, 6), "last": normal(6, 3)}
    return model(outer, [value("x", ["t", 1, 4])], [value("y", None)], constants), {"x": normal(20, 1, 4)}


NETWORKS = {**{step: lambda step=step: repeated(step) for step in STEPS}, "bags": bags, "scanned": scanned}


def run_file(path: Path, feeds: Feeds) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    result: np.ndarray = onnxruntime.InferenceSession(str(path), options).run(None, dict(feeds))[0]
    return result


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_file_holds_integers_alone_and_is_the_simulator(kind: str, tmp_path: Path) -> None:
    proto, feeds = NETWORKS[kind]()
    opened_alike(proto, feeds)
    sim = isobit.quantize(proto, [feeds], method="minmax", recipe="basic", progress=False)
    assert sim.report.coverage.weights is not None
    assert sim.report.coverage.weights > 0.9  # a state that the model begins with is no weight
    path = sim.export(tmp_path / "out")["model"]
    floats = [t for t in onnx.load(path).graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims) > 1]
    assert {tuple(t.dims) for t in floats} <= {(1, 6)}
    np.testing.assert_allclose(run_file(path, feeds), sim.run(feeds)["y"], atol=2e-5)
    exact = sim.run_float(feeds)["y"]
    assert 20 * np.log10(np.linalg.norm(exact) / np.linalg.norm(exact - sim.run(feeds)["y"])) > 25


@pytest.mark.parametrize("step", STEPS)
def test_channels_are_those_of_the_layer_inside(step: str) -> None:
    proto, feeds = repeated(step)
    sim = isobit.QuantSim(proto, feeds, target="default")
    (inside,) = [name for name in sim.graph.weights if name not in ("first", "last", "count")]
    placement = sim.plan.placements[Weight(inside)]
    axis = STEPS[step][1]
    assert str(placement.spec.granularity) == ("per-tensor" if axis is None else "per-channel")
    assert axis is None or placement.channel_axis == axis


def test_what_others_read_too_stays_in_float_and_is_said() -> None:
    proto, feeds = repeated("product")
    proto.graph.node[0].input[1] = "w"
    with pytest.warns(CoverageWarning, match="read in a body of Loop 'n_z' and elsewhere too"):
        sim = isobit.quantize(proto, [feeds], method="minmax", recipe="basic", progress=False)
    exact = sim.run_float(feeds)["y"]
    assert np.abs(sim.run(feeds)["y"] - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("how", [{"overrides": {"w": None}}, {"exclude": ["n_z"]}])
def test_an_override_and_an_exclusion_leave_it_in_float(how: dict[str, object]) -> None:
    proto, feeds = repeated("product")
    assert Weight("w") not in isobit.QuantSim(proto, feeds, **how).plan.placements


def test_other_constants_of_a_body_stay_in_float() -> None:
    """A bias and a factor there are no weights, whatever the target quantizes elsewhere."""
    proto, feeds = repeated("product")
    body = next(n for n in proto.graph.node if n.op_type == "Loop").attribute[0].g
    body.node[0].output[0] = "r"
    body.node.insert(1, node("Add", "r b", "a"))
    body.node.insert(2, node("Mul", "a k", "m"))
    proto.graph.initializer.extend([constant("b", normal(6), np.float32), constant("k", normal(6), np.float32)])
    sim = isobit.QuantSim(proto, feeds, target="default")
    assert Weight("w") in sim.plan.placements
    assert not {Weight("b"), Weight("k")} & set(sim.plan.placements)


def test_blocks_of_a_weight_in_a_body_lie_along_its_inputs() -> None:
    proto, feeds = repeated("product")
    plan = isobit.QuantSim(proto, feeds, target="default", weights="int4 block=3").plan
    placement = plan.placements[Weight("w")]
    assert (str(placement.spec), placement.channel_axis, placement.block_axis) == (
        str(plan.placements[Weight("first")].spec), 1, 0
    )  # fmt: skip


def test_tiny_weights_in_a_body_stay_in_float_and_are_said() -> None:
    proto, feeds = repeated("product")
    for initializer in proto.graph.initializer:
        if initializer.name == "w":
            initializer.CopyFrom(constant("w", 1e-11 * normal(6, 6), np.float32))
    sim = isobit.QuantSim(proto, feeds)
    assert Weight("w") not in sim.plan.placements
    assert "smallest scale" in sim.report.left_in_float["w"]


def test_a_part_without_the_if_does_not_want_the_weights_of_its_bodies() -> None:
    """Rounding runs the network up to each layer; bodies that are gone still use the constants of what is behind."""

    def branch(name: str, scale: str) -> onnx.GraphProto:
        nodes = [node("MatMul", f"z {scale}", f"{name}_y")]
        return helper.make_graph(nodes, name, [], [value(f"{name}_y", ["n", 24])])

    outer = [
        node("MatMul", "x first", "h"),
        node("Relu", "h", "r"),
        node("MatMul", "r last", "z"),
        node("ReduceMax", "z", "top", keepdims=0),
        node("Greater", "top limit", "is_high"),
        node("If", "is_high", "y", then_branch=branch("high", "w1"), else_branch=branch("low", "w2")),
    ]
    constants = {name: normal(24, 24) for name in ("first", "last", "w1", "w2")}
    limit = {"limit": constant("limit", 1.0)}
    proto = model(outer, [value("x", ["n", 24])], [value("y", ["n", 24])], constants | limit)
    sim = isobit.quantize(proto, normal(64, 24), recipe="ptq", progress=False)
    assert sim.report.coverage.weights == 1
