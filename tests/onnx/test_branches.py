"""An If that constants, sizes or settings decide is opened as the branch that is taken."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import isobit
from isobit.errors import DataError
from isobit_onnx.backend import OnnxBackend

RNG = np.random.default_rng(4)


def constant(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def weight(name, *shape):
    return constant(name, RNG.standard_normal(shape).astype(np.float32))


def body(name, nodes, outputs, constants=()):
    values = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None) for output in outputs]
    return helper.make_graph(nodes, name, [], values, list(constants))


def layer(name, scale="w", out="out", width=5):
    """A branch with a weight and a bias of its own; both branches use the same names."""
    nodes = [
        helper.make_node("MatMul", ["h", scale], [f"product{out}"], f"matmul{name}"),
        helper.make_node("Add", [f"product{out}", f"b{out}"], [f"sum{out}"], f"add{name}"),
        helper.make_node("Relu", [f"sum{out}"], [out]),
    ]
    own = [weight(f"b{out}", width)]
    return body(name, nodes, [out], own if scale != "w" else [*own, weight("w", 6, width)])


CONDITIONS = {
    "rate": [helper.make_node("Equal", ["rate", "rate_16k"], ["condition"])],
    "flag": [helper.make_node("Not", ["flag"], ["condition"])],
    "settings": [  # computed from two of them
        helper.make_node("Cast", ["flag"], ["flag_int"], to=TensorProto.INT64),
        helper.make_node("Mul", ["rate", "flag_int"], ["product_of_both"]),
        helper.make_node("Less", ["product_of_both", "rate_16k"], ["condition"]),
    ],
    "open size": [
        helper.make_node("Shape", ["h"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "one"], ["length"]),
        helper.make_node("Equal", ["length", "four"], ["condition"]),
    ],
    "known size": [
        helper.make_node("Shape", ["h"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "two"], ["length"]),
        helper.make_node("Equal", ["length", "four"], ["condition"]),
    ],
    "constant": [helper.make_node("Less", ["one", "two"], ["condition"])],
    "signal": [
        helper.make_node("ReduceSum", ["h"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "zero"], ["condition"]),
    ],
}

CONSTANTS = [
    constant("rate_16k", np.int64(16_000)),
    constant("one", np.int64(1)),
    constant("two", np.int64(2)),
    constant("four", np.int64(4)),
    constant("zero", np.float32(0)),
]


def branching(condition, then=None, otherwise=None, outputs=("y",), further=()):
    """A linear layer, an If on a condition, and a linear layer."""
    then, otherwise = then or layer("then"), otherwise or layer("else")
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["h"], "first_layer"),
        *CONDITIONS[condition],
        helper.make_node(
            "If", ["condition"], [f"z{i}" for i in range(len(then.output))], "choose", then_branch=then,
            else_branch=otherwise,
        ),
        helper.make_node("MatMul", ["z0", "last"], ["y"], "last_layer"),
    ]  # fmt: skip
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "t", 6]),
        helper.make_tensor_value_info("rate", TensorProto.INT64, []),
        helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
    ]
    values = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None) for output in outputs]
    constants = [*CONSTANTS, weight("first", 6, 6), weight("last", 5, 3), *further]
    graph = helper.make_graph(nodes, "g", inputs, values, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model


def batch(rate=16_000, flag=False, length=4, seed=0):
    x = np.random.default_rng(seed).standard_normal((3, length, 6)).astype(np.float32)
    return {"x": x, "rate": np.array(rate, np.int64), "flag": np.array(flag)}


def reference(model, feeds):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {entry.name: feeds[entry.name] for entry in session.get_inputs()})


def matmuls(sim):
    return sorted(node.name for node in sim.graph.nodes if node.op in ("MatMul", "Linear"))


TAKEN = {  # what decides, data that take the one branch, and data that take the other
    "rate": (batch(16_000), batch(8_000)),
    "flag": (batch(flag=False), batch(flag=True)),
    "settings": (batch(flag=False), batch(flag=True)),
    "open size": (batch(length=4), batch(length=7)),
}


@pytest.mark.parametrize("condition", TAKEN)
@pytest.mark.parametrize("first", [0, 1])
def test_settings_and_sizes_are_decided_by_the_data(condition, first, tmp_path):
    model = branching(condition)
    ours, other = TAKEN[condition][first], TAKEN[condition][1 - first]
    sim = isobit.quantize(model, [ours, {**ours, "x": 2 * ours["x"]}], progress=False)
    assert sim.report.coverage.weights > 0.9
    assert not [node for node in sim.graph.nodes if node.op == "If"]
    assert any("'choose'" in note and ("else", "then")[first == 0] in note for note in sim.graph.notes), sim.graph.notes
    np.testing.assert_allclose(sim.run_float(ours)["y"], reference(model, ours)[0], rtol=1e-5, atol=1e-5)
    for run in (sim.run, sim.run_float, lambda data: sim.calibrate([data], progress=False)):
        with pytest.raises(DataError, match="takes another branch"):
            run(other)
    result = sim.export(tmp_path)
    # sums of uint8 x int8 products saturate in the default session on processors without VNNI
    assert all(check.equal == 1 for check in result.checks if check.session != "default session")
    written = onnx.load(result["model"])
    assert "choose" in {prop.key: prop.value for prop in written.metadata_props}["isobit.branches"]


@pytest.mark.parametrize("size", [1, 4])
def test_whole_arrays_decide_by_the_batches_that_are_cut_of_them(size):
    """The branch of one sample, where an example of arrays has two."""
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "zero"], ["samples"]),
        helper.make_node("Equal", ["samples", "one"], ["condition"]),
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node(
            "If",
            ["condition"],
            ["y"],
            "choose",
            then_branch=body("then", [helper.make_node("Relu", ["h"], ["out"])], ["out"]),
            else_branch=body("else", [helper.make_node("Tanh", ["h"], ["out"])], ["out"]),
        ),
    ]
    constants = [weight("w", 6, 5), constant("zero", np.int64(0)), constant("one", np.int64(1))]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])]
    graph = helper.make_graph(nodes, "samples", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data = RNG.standard_normal((16, 6)).astype(np.float32)
    sim = isobit.quantize(model, data, batch_size=size, recipe="basic", progress=False)
    assert {node.op for node in sim.graph.nodes} - {"MatMul", "Linear"} == {"Relu" if size == 1 else "Tanh"}
    assert not any("different branches" in note for note in sim.report.notes)


@pytest.mark.parametrize("condition", TAKEN)
def test_data_that_take_several_branches_keep_them_all(condition):
    """The first batch alone decides nothing then, and a note says what stays in float."""
    model, both = branching(condition), list(TAKEN[condition])
    sims = [
        isobit.quantize(model, both, recipe="basic", method="minmax", progress=False),
        isobit.auto_quantize(model, 2 * both, evaluations=1, max_drop=1.0, progress=False).sim,
    ]
    for sim in sims:
        assert any("take different branches of an If" in note for note in sim.report.notes), sim.report.notes
        assert [node for node in sim.graph.nodes if node.op == "If"]
        for data in both:
            np.testing.assert_allclose(sim.run_float(data)["y"], reference(model, data)[0], rtol=1e-5, atol=1e-5)
    sim = isobit.quantize(
        model, iter(both), method="minmax", recipe="basic", progress=False
    )  # an iterator is not asked
    assert [node for node in sim.graph.nodes if node.op == "If"]


@pytest.mark.parametrize("condition", ["constant", "known size"])
def test_what_the_file_decides_needs_no_example(condition):
    model = branching(condition)
    sim = isobit.QuantSim(model)
    assert not sim.graph.notes
    assert sim.report.coverage.weights > 0.9
    for data in (batch(), batch(8_000, True, 7)):
        np.testing.assert_allclose(sim.run_float(data)["y"], reference(model, data)[0], rtol=1e-5, atol=1e-5)


def test_without_an_example_the_if_stays_and_says_what_to_pass():
    sim = isobit.QuantSim(branching("rate"))
    assert any("pass example_inputs" in note for note in sim.graph.notes)
    assert [node for node in sim.graph.nodes if node.op == "If"]


def test_the_values_of_the_signal_decide_nothing():
    model = branching("signal")
    sim = isobit.quantize(model, [batch()], progress=False)
    assert any("the values of the data choose" in note for note in sim.graph.notes)
    for seed in range(4):
        data = batch(seed=seed)
        np.testing.assert_allclose(sim.run_float(data)["y"], reference(model, data)[0], rtol=1e-5, atol=1e-5)


def test_an_if_inside_the_branch_is_decided_too():
    inner = helper.make_node(
        "If", ["inner_condition"], ["chosen"], "inner", then_branch=layer("deep", out="deep"),
        else_branch=layer("deeper", out="deeper"),
    )  # fmt: skip
    nodes = [
        helper.make_node("Shape", ["h"], ["inner_sizes"]),
        helper.make_node("Gather", ["inner_sizes", "one"], ["inner_length"]),
        helper.make_node("Equal", ["inner_length", "four"], ["inner_condition"]),
        inner,
        helper.make_node("Tanh", ["chosen"], ["out"]),
    ]
    model = branching("rate", then=body("then", nodes, ["out"]))
    for ours, deep in ((batch(), "adddeep"), (batch(length=7), "adddeeper")):
        sim = isobit.quantize(model, [ours], progress=False)
        assert deep in matmuls(sim)
        np.testing.assert_allclose(sim.run_float(ours)["y"], reference(model, ours)[0], rtol=1e-5, atol=1e-5)


def test_branches_that_share_a_weight_and_pass_on_what_is_outside():
    then = [
        helper.make_node("MatMul", ["h", "shared"], ["out"], "matmulthen"),
        helper.make_node("Identity", ["h"], ["other"]),
    ]
    otherwise = [
        helper.make_node("MatMul", ["x", "shared"], ["out"], "matmulelse"),
        helper.make_node("Identity", ["x"], ["other"]),
    ]
    branches = body("then", then, ["out", "other"]), body("else", otherwise, ["out", "other"])
    model = branching("flag", *branches, ("y", "z1"), [weight("shared", 6, 5)])
    for data in (batch(flag=False), batch(flag=True)):
        sim = isobit.quantize(model, [data], progress=False)
        assert sim.report.coverage.weights == 1
        found = sim.run_float(data)
        for name, expected in zip(("y", "z1"), reference(model, data), strict=True):
            np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("condition", TAKEN)
def test_a_loaded_simulator_refuses_the_other_branch_too(condition, tmp_path):
    ours, other = TAKEN[condition]
    model = branching(condition)
    sim = isobit.quantize(model, [ours], method="minmax", progress=False)
    for _ in range(2):  # what was loaded is saved with its example too
        sim.save(tmp_path / "sim.isobit")
        loaded = isobit.load(tmp_path / "sim.isobit", model)
        np.testing.assert_array_equal(loaded.run(ours)["y"], sim.run(ours)["y"])
        with pytest.raises(DataError, match="takes another branch"):
            loaded.run(other)
        sim = loaded
    restored = OnnxBackend().restore(loaded.simulation.model.state())  # as in another process
    with pytest.raises(DataError, match="takes another branch"):
        restored.run(other)


def loop(kind):
    """A Loop or a Scan whose body has a weight of its own."""
    value = helper.make_tensor_value_info
    step = helper.make_node("MatMul", ["state", "inner"], ["next"], "inner_layer")
    inner = weight("inner", 6, 6)
    if kind == "Loop":
        go_on = helper.make_node("Identity", ["go"], ["go_on"])
        inputs = [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("state", 1, ["n", 6])]
        outputs = [value("go_on", TensorProto.BOOL, []), value("next", 1, ["n", 6])]
        graph = helper.make_graph([step, go_on], "body", inputs, outputs, [inner])
        return helper.make_node("Loop", ["count", "true", "h"], ["z"], "repeat", body=graph)
    copy = helper.make_node("Add", ["next", "part"], ["after"])
    inputs = [value("state", 1, ["n", 6]), value("part", 1, ["n", 6])]
    graph = helper.make_graph([step, copy], "body", inputs, [value("after", 1, ["n", 6])], [inner])
    return helper.make_node("Scan", ["h", "parts"], ["z"], "repeat", body=graph, num_scan_inputs=1)


@pytest.mark.parametrize("kind", ["If", "Loop", "Scan"])
def test_weights_in_bodies_are_integers_and_their_operations_not_counted(kind):
    if kind == "If":
        model, data, inside, name = branching("signal"), batch(), 4 * (2 * 6 * 5), "choose"
    else:
        nodes = [
            helper.make_node("MatMul", ["x", "first"], ["h"], "first_layer"),
            loop(kind),
            helper.make_node("MatMul", ["z", "last"], ["y"], "last_layer"),
        ]
        constants = [weight("first", 6, 6), weight("last", 6, 3), constant("true", True)]
        value = helper.make_tensor_value_info
        passes = value("count", TensorProto.INT64, []) if kind == "Loop" else value("parts", 1, ["passes", 1, 6])
        graph = helper.make_graph(nodes, "g", [value("x", 1, ["n", 6]), passes], [value("y", 1, None)], constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        data, inside, name = {"x": RNG.standard_normal((3, 6)).astype(np.float32)}, 4 * 6 * 6, "repeat"
        parts = RNG.standard_normal((4, 1, 6)).astype(np.float32)
        data[passes.name] = np.array(3) if kind == "Loop" else parts
    sim = isobit.quantize(model, [data], method="minmax", recipe="basic", progress=False)
    coverage = sim.report.coverage
    assert coverage.integer_weight_bytes >= inside
    assert name in coverage.uncounted
    np.testing.assert_allclose(sim.run_float(data)["y"], reference(model, data)[0], rtol=1e-5, atol=1e-5)
