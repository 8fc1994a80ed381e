"""Loops of few passes, known from constants, are copies of their bodies, whose layers are quantized."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_models import constant, model, node, opened_alike, ops, runtime, value

import isobit
from isobit.graph import Weight

RNG = np.random.default_rng(8)
INT64, BOOL, FLOAT = TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT


def normal(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


STEP = [node("MatMul", "state inner", "product"), node("Tanh", "product", "next")]
HEAD = [value("number", [], INT64), value("go", [], BOOL), value("state", None)]


def body(
    nodes: Sequence[onnx.NodeProto],
    outputs: Sequence[onnx.ValueInfoProto],
    inputs: Sequence[onnx.ValueInfoProto] = HEAD,
    constants: Sequence[onnx.TensorProto] = (),
) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), "body", list(inputs), list(outputs), list(constants))


GO, NEXT = value("go_on", [], BOOL), value("next", None)
ON = node("Identity", "go", "go_on")
INNER = constant("inner", normal(6, 6))


def repeated(kind: str) -> tuple[onnx.NodeProto, int]:
    """A loop that reads h and makes z, and the number of layers that it is."""
    if kind == "a number":
        return node("Loop", "three true h", "z", body=body([*STEP, ON], [GO, NEXT], constants=[INNER])), 3
    if kind == "no condition":
        return node("Loop", "three - h", "z", body=body([*STEP, ON], [GO, NEXT], constants=[INNER])), 3
    if kind == "constants in the body":
        held = [
            node("Constant", "", "inner", value=INNER),
            node("Constant", "", "go_on", value=constant("t", True, bool)),
        ]
        return node("Loop", "three true h", "z", body=body([*held, *STEP], [GO, NEXT])), 3
    if kind == "a counted condition":
        count = [node("Add", "counter one", "counted"), node("Less", "counted two", "go_on")]
        inputs = [*HEAD[:2], value("counter", [], INT64), HEAD[2]]
        graph = body([*STEP, *count], [GO, value("counted", [], INT64), NEXT], inputs, [INNER])
        return node("Loop", "- true zero h", "counter_end z", body=graph), 2
    if kind == "a weight a pass":
        pick = node("Gather", "stack number", "inner")
        stack = constant("stack", normal(3, 6, 6))
        return node("Loop", "three true h", "z", body=body([pick, *STEP, ON], [GO, NEXT], constants=[stack])), 3
    if kind == "a value of every pass":
        copy = node("Identity", "next", "seen")
        graph = body([*STEP, copy, ON], [GO, NEXT, value("seen", None)], constants=[INNER])
        return node("Loop", "three true h", "end z", body=graph), 3
    if kind == "another loop inside":
        within = [value("number2", [], INT64), value("go2", [], BOOL), value("state2", None)]
        steps = [node("MatMul", "state2 inner", "next2"), node("Identity", "go2", "go_on2")]
        inside = body(steps, [value("go_on2", [], BOOL), value("next2", None)], within)
        loop = node("Loop", "two true state", "next", body=inside)
        return node("Loop", "three true h", "z", body=body([loop, ON], [GO, NEXT], constants=[INNER])), 6
    if kind == "a branch of the first pass":
        first = body([node("MatMul", "state inner", "a")], [value("a", None)], [])
        later = body([node("Add", "state state", "b")], [value("b", None)], [])
        choose = [node("Equal", "number zero", "is"), node("If", "is", "next", then_branch=first, else_branch=later)]
        return node("Loop", "three true h", "z", body=body([*choose, ON], [GO, NEXT], constants=[INNER])), 1
    assert kind == "a state that only passes"
    graph = body(
        [*STEP, ON],
        [GO, NEXT, value("other", None)],
        [*HEAD, value("other", None)],
        [INNER],
    )
    return node("Loop", "three true h x", "z x_end", body=graph), 3


LOOPS = (
    "a number", "no condition", "constants in the body", "a counted condition", "a weight a pass",
    "a value of every pass", "another loop inside", "a branch of the first pass", "a state that only passes",
)  # fmt: skip


def network(loop: onnx.NodeProto) -> onnx.ModelProto:
    nodes = [node("MatMul", "x first", "h"), loop, node("MatMul", "z last", "y")]
    outputs = [value("y", None), *(value(o, None) for o in loop.output if o.endswith("_end") and o != "counter_end")]
    numbers = {name: constant(name, n, np.int64) for n, name in enumerate(("zero", "one", "two", "three"))}
    held = {"first": normal(6, 6), "last": normal(6, 3), "true": constant("true", True, bool), **numbers}
    return model(nodes, [value("x", ["n", 6])], outputs, held)


@pytest.mark.parametrize("kind", LOOPS)
def test_the_layers_of_a_loop_are_layers_of_the_network(kind: str) -> None:
    loop, layers = repeated(kind)
    proto, x = network(loop), normal(5, 6)
    opened = opened_alike(proto, {"x": x})
    assert not {"Loop", "If"} & set(ops(opened))
    assert sum(op in ("Linear", "MatMul") for op in ops(opened)) == layers + 2
    coverage = isobit.QuantSim(proto, target="onnxruntime-cpu").report.coverage
    assert coverage.integer_multiply_adds == coverage.multiply_adds > 0


def scanned(backwards: int, axis: int, out_axis: int) -> onnx.ModelProto:
    """A simple recurrent cell over the parts of an input along one axis."""
    nodes = [
        node("MatMul", "part inner", "p"), node("MatMul", "state recurrent", "q"), node("Add", "p q", "s"),
        node("Tanh", "s", "next"), node("Identity", "next", "seen"),
    ]  # fmt: skip
    shapes = {name: ["n", 6] for name in ("state", "part", "next", "seen")}
    graph = body(
        nodes,
        [value(name, shapes[name]) for name in ("next", "seen")],
        [value(name, shapes[name]) for name in ("state", "part")],
        [INNER, constant("recurrent", normal(6, 6))],
    )
    scan = node(
        "Scan", "h x", "end z", body=graph, num_scan_inputs=1, scan_input_axes=[axis], scan_output_axes=[out_axis],
        scan_input_directions=[backwards], scan_output_directions=[backwards],
    )  # fmt: skip
    first = [node("ReduceMean", "x", "m", axes=[axis], keepdims=0), node("MatMul", "m first", "h")]
    held = {"first": normal(6, 6), "last": normal(6, 3)}
    shape = [4, "n", 6] if axis == 0 else ["n", 4, 6]
    return model(
        [*first, scan, node("MatMul", "z last", "y")],
        [value("x", shape)], [value("y", None), value("end", None)], held,
    )  # fmt: skip


@pytest.mark.parametrize("backwards", [0, 1])
@pytest.mark.parametrize(("axis", "out_axis"), [(0, 0), (1, 1), (1, 0)])
def test_a_scan_over_a_known_length(backwards: int, axis: int, out_axis: int) -> None:
    proto = scanned(backwards, axis, out_axis)
    opened = opened_alike(proto, {"x": normal(4, 3, 6) if axis == 0 else normal(3, 4, 6)})
    assert "Scan" not in ops(opened)
    assert ops(opened).count("Linear") == 2 * 4 + 2


def test_the_file_is_the_simulator_and_holds_the_weight_once(tmp_path: Path) -> None:
    proto, x = network(repeated("a number")[0]), normal(64, 6)
    sim = isobit.quantize(proto, x, method="minmax", recipe="basic", progress=False)
    assert sim.report.counts["weight"] == 3
    path = sim.export(tmp_path / "out")["model"]
    difference = runtime(onnx.load(path), {"x": x})["y"] - sim.run({"x": x})["y"]
    assert np.abs(difference).max() < 0.1


def many() -> onnx.NodeProto:
    return node("Loop", "many true h", "z", body=body([*STEP, ON], [GO, NEXT], constants=[INNER]))


def random() -> onnx.NodeProto:
    noise = [node("RandomNormalLike", "state", "noise"), node("Mul", "noise zero_float", "none")]
    steps = [*noise, node("Add", "state none", "moved"), node("MatMul", "moved inner", "next"), ON]
    return node("Loop", "three true h", "z", body=body(steps, [GO, NEXT], constants=[INNER]))


def until_small() -> onnx.NodeProto:
    test = [node("ReduceMax", "next", "most", keepdims=0), node("Less", "most zero_float", "go_on")]
    return node("Loop", "three true h", "z", body=body([*STEP, *test], [GO, NEXT], constants=[INNER]))


@pytest.mark.parametrize("make", [many, random, until_small])
def test_other_loops_stay_and_their_weights_are_stored_as_integers(make: object) -> None:
    proto = network(make())  # type: ignore[operator]
    more = [constant("many", 400, np.int64), constant("zero_float", 0.0)]
    proto.graph.initializer.extend(more)
    x = normal(5, 6)
    opened = opened_alike(proto, {"x": x})
    assert "Loop" in ops(opened)
    assert Weight("inner") in isobit.QuantSim(proto, {"x": x}).plan.placements
    assert any("passes that constants decide" in note for note in opened.graph.notes)
