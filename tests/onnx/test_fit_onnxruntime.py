"""Files of every documented format load at every level of optimisation, and give the simulator's bits without it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper
from small_models import constant, model, node, value

import isobit
from isobit.graph import Weight
from isobit_onnx.backend import OnnxBackend
from isobit_onnx.export.fit_onnxruntime import fit_onnxruntime

RNG = np.random.default_rng(4)
LEVELS = onnxruntime.GraphOptimizationLevel
EVERY_LEVEL = [LEVELS.ORT_DISABLE_ALL, LEVELS.ORT_ENABLE_BASIC, LEVELS.ORT_ENABLE_EXTENDED, LEVELS.ORT_ENABLE_ALL]


def session(content, level, **entries):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4
    for key, setting in entries.items():
        options.add_session_config_entry(f"session.{key}", setting)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def check_exported(proto, batch, folder: Path, least=25.0, **settings):
    """The simulator and its file, run in every way; returns both."""
    sim = isobit.quantize(proto, [batch], **settings)
    path = sim.export(folder)["model"]
    simulated = sim.run(batch)
    sessions = [session(str(path), level) for level in EVERY_LEVEL]
    sessions.append(session(str(path), EVERY_LEVEL[-1], x64quantprecision="1"))
    for position, opened in enumerate(sessions):
        for name, array in zip(simulated, opened.run(None, batch), strict=True):
            noise = float(np.square(array - simulated[name]).sum())
            assert noise <= 10 ** (-least / 10) * float(np.square(simulated[name]).sum()), (position, name)
            if position == 0:
                np.testing.assert_allclose(array, simulated[name], atol=1e-5)
    return sim, path


MOVES = {
    "Reshape": ([node("Reshape", "h shape", "m")], {"shape": constant("shape", [0, -1, 4], np.int64)}),
    "Transpose": ([node("Transpose", "h", "m", perm=[0, 2, 1])], {}),
    "Slice": ([node("Slice", "h zero three one", "m")], {}),
    "Unsqueeze": ([node("Unsqueeze", "h one", "u"), node("Squeeze", "u one", "m")], {}),
    "MaxPool": ([node("MaxPool", "h", "m", kernel_shape=[2])], {}),
    "all": (
        [
            node("Transpose", "h", "t", perm=[0, 2, 1]),
            node("MaxPool", "t", "p", kernel_shape=[2]),
            node("Slice", "p zero three one", "s"),
            node("Unsqueeze", "s one", "u"),
            node("Squeeze", "u one", "q"),
            node("Reshape", "q shape", "m"),
        ],
        {"shape": constant("shape", [0, 3, -1], np.int64)},
    ),
}
NUMBERS = {name: constant(name, [number], np.int64) for name, number in (("zero", 0), ("one", 1), ("three", 3))}
# What reads the moved values, and which other outputs there are.
READERS = {
    "float": ([node("Erf", "m", "y")], ["y"]),
    "quantized": ([node("Sigmoid", "m", "y")], ["y"]),
    "several": ([node("Erf", "m", "y"), node("Abs", "m", "z"), node("Sigmoid", "m", "w")], ["y", "z", "w"]),
    "returned": ([node("Abs", "h", "y")], ["m", "y"]),
    "returned and read": ([node("Abs", "m", "y")], ["m", "y"]),
}


@pytest.mark.parametrize("activations", ["int8", "int8 asymmetric", "int4"])
@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("reader", READERS)
def test_quantizers_of_signed_activations_around_moves(activations, move, reader, tmp_path):
    """onnxruntime copies a quantizer past moves of values; its copies of int8 do not load."""
    moves, constants = MOVES[move]
    readers, outputs = READERS[reader]
    proto = model(
        [node("Sigmoid", "x", "h"), *moves, *readers],
        [value("x", ["n", 8, 6])],
        [value(name, None) for name in outputs],
        {**NUMBERS, **constants},
        21,
    )
    batch = {"x": RNG.standard_normal((3, 8, 6)).astype(np.float32)}
    check_exported(proto, batch, tmp_path, activations=activations)


@pytest.mark.parametrize("activations", ["int8", "int4", "uint8"])
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 8), (2, 4, 3, 8), (5, 8)])
def test_a_product_of_signed_activations_with_a_bias(activations, swapped, shape, tmp_path):
    """onnxruntime makes a Gemm between reshapes of it, past which it copies quantizers."""
    nodes = [node("MatMul", "x w", "m"), node("Add", "b m" if swapped else "m b", "y"), node("Relu", "y", "z")]
    constants = {"w": RNG.standard_normal((8, 4)), "b": RNG.standard_normal(4)}
    proto = model(nodes, [value("x", shape)], [value("z", [*shape[:-1], 4])], constants, 17)
    sim, path = check_exported(
        proto, {"x": RNG.standard_normal(shape).astype(np.float32)}, tmp_path, activations=activations
    )
    other = isobit.QuantSim(proto, activations=activations)
    other.load_encodings(path)
    assert other.encodings[Weight("b")] == sim.encodings[Weight("b")]


WEIGHTED = {
    "Conv 3x3": (node("Conv", "x w", "y"), (6, 8, 3, 3), (2, 8, 5, 5)),
    "Conv groups": (node("Conv", "x w", "y", group=2), (6, 8, 3, 1), (2, 16, 5, 5)),
    "MatMul": (node("MatMul", "x w", "y"), (8, 6), (4, 8)),
    "stacked": (node("MatMul", "x w", "y"), (3, 8, 6), (2, 3, 5, 8)),
    "Gemm": (node("Gemm", "x w", "y", transB=1), (6, 8), (4, 8)),
    "ConvTranspose": (node("ConvTranspose", "x w", "y"), (8, 3, 2, 2), (2, 8, 4, 4)),
}


@pytest.mark.parametrize("weights", ["int8", "uint6", "int4"])
@pytest.mark.parametrize("granularity", ["per-channel", "block=2", "block=8"])
@pytest.mark.parametrize("layer", WEIGHTED)
@pytest.mark.parametrize("settings", [{}, {"exclude": "Sigmoid"}, {"target": "onnxruntime-cpu-transformer"}], ids=str)
def test_scales_that_integer_kernels_cannot_use(weights, granularity, layer, settings, tmp_path):
    """onnxruntime fuses Conv and MatMul with any weight of 8 bits, and its kernels then refuse scales by block."""
    weighted, shape, batch_shape = WEIGHTED[layer]
    if weights == "uint6" and "target" in settings:
        weights = "uint8"
    proto = model(
        [weighted, node("Sigmoid", "y", "z")],
        [value("x", batch_shape)],
        [value("z" if "exclude" in settings else "y", None)],
        {"w": RNG.standard_normal(shape)},
        21,
    )
    batch = {"x": RNG.standard_normal(batch_shape).astype(np.float32)}
    settings = {**settings, "weights": f"{weights} {granularity}"}
    sim, path = check_exported(proto, batch, tmp_path, **settings)
    if weights != "uint6":  # the file says 8 bits
        other = isobit.QuantSim(proto, **settings)
        other.load_encodings(path)
        weight = sim.backend_model.weight("w")
        np.testing.assert_array_equal(
            other.encodings["w"].fake_quantize(weight), sim.encodings["w"].fake_quantize(weight)
        )


PRODUCTS = {
    "MatMul": [node("MatMul", "x w", "y")],
    "Gemm": [node("Gemm", "x w b", "y", transB=1)],
    "moved": [node("Unsqueeze", "x zero", "u"), node("MatMul", "u w", "m"), node("Squeeze", "m zero", "y")],
    "a shared weight": [
        node("MatMul", "x w", "h"), node("Transpose", "w", "t", perm=[1, 0]), node("MatMul", "h t", "y"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("form", PRODUCTS)
@pytest.mark.parametrize(
    ("activations", "weights"), [("uint16", "int8"), ("int16", "int8 per-tensor"), ("int16", "int4")]
)
def test_floats_and_sixteen_bits_are_not_rounded_to_eight(form, activations, weights, tmp_path):
    """onnxruntime multiplies floats with weights of few bits after it has rounded them, in blocks, to eight."""
    shape = (6, 32) if form == "Gemm" else (32, 6)
    constants = {"w": RNG.standard_normal(shape), "b": RNG.standard_normal(6), **NUMBERS}
    used = {name for n in PRODUCTS[form] for name in n.input}
    held = {name: array for name, array in constants.items() if name in used}
    proto = model(PRODUCTS[form], [value("x", ["n", 32])], [value("y", None)], held, 21)
    loud = RNG.standard_normal((64, 32)) * 10 ** RNG.uniform(-3, 3, (64, 32))
    settings = {"activations": activations, "weights": weights, "target": "default", "method": "minmax"}
    if activations is None:
        settings["overrides"] = {"x": None}
    check_exported(proto, {"x": loud.astype(np.float32)}, tmp_path, least=70, **settings)


def test_stacked_matrices_stay_with_the_integer_kernel(tmp_path):
    weighted, shape, batch_shape = WEIGHTED["stacked"]
    proto = model([weighted], [value("x", batch_shape)], [value("y", None)], {"w": RNG.standard_normal(shape)}, 21)
    batch = {"x": RNG.standard_normal(batch_shape).astype(np.float32)}
    _, path = check_exported(proto, batch, tmp_path, target="onnxruntime-cpu-transformer")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    assert "MatMulIntegerToFloat" in {n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node}


def test_names_that_are_taken(tmp_path):
    """New values and nodes take names that the model does not have."""
    proto = model(
        [node("Sigmoid", "x", "m_moved"), node("Reshape", "m_moved shape", "m"), node("Abs", "m", "m_dequantized")],
        [value("x", ["n", 8])],
        [value("m_dequantized", None)],
        {"shape": constant("shape", [0, 2, 4], np.int64)},
        21,
    )
    check_exported(proto, {"x": RNG.standard_normal((3, 8)).astype(np.float32)}, tmp_path, activations="int8")


def test_the_simulator_itself_loads_everywhere():
    """`sim.model` is a plain QDQ model, also where the quantizers were placed by hand."""
    proto = model(
        [node("Sigmoid", "x", "h"), node("Transpose", "h", "y", perm=[0, 2, 1])],
        [value("x", ["n", 2, 3])],
        [value("y", ["n", 3, 2])],
        {},
        21,
    )
    sim = isobit.quantize(proto, RNG.standard_normal((4, 2, 3)).astype(np.float32), activations="int8")
    batch = {"x": RNG.standard_normal((2, 2, 3)).astype(np.float32)}
    opened = OnnxBackend().open(proto)
    opened.set_quantizers(dict(sim.encodings))
    assert opened.native.graph.output[0].name == "y"
    for level in EVERY_LEVEL:
        (y,) = session(opened.native.SerializeToString(), level).run(None, batch)
        np.testing.assert_array_equal(y, sim.run(batch)["y"])


@pytest.mark.parametrize("activations", ["float16", "bfloat16"])
@pytest.mark.parametrize("form", ["one difference", "two differences", "of a sum", "without shift", "beside a float"])
def test_small_floats_in_front_of_a_norm_in_steps(activations, form, tmp_path):
    """onnxruntime makes one node of the steps, of two types: it does not load."""
    x = "h" if form == "of a sum" else "x"
    nodes = [
        *([node("MatMul", "x a", "g"), node("Add", "x g", "h")] if form == "of a sum" else []),
        node("ReduceMean", x, "mean", axes=[-1]),
        node("Sub", f"{x} mean", "d"),
        *([node("Sub", f"{x} mean", "e")] if form == "two differences" else []),
        node("Pow", "d two", "square"),
        node("ReduceMean", "square", "variance", axes=[-1]),
        node("Add", "variance epsilon", "shifted"),
        node("Sqrt", "shifted", "root"),
        node("Div", "e root" if form == "two differences" else "d root", "n"),
        node("Mul", "n scale", "m"),
        *([] if form == "without shift" else [node("Add", "m shift", "k")]),
        node("MatMul", "m w" if form == "without shift" else "k w", "y"),
        *([node("Slice", "x zero one", "part")] if form == "beside a float" else []),  # it reads the value as it was
    ]
    outputs = [value("y", ["n", 5, 4]), *([value("part", None)] if form == "beside a float" else [])]
    ends = {name: constant(name, [end], np.int64) for name, end in (("zero", 0), ("one", 1))}
    constants = {
        **(ends if form == "beside a float" else {}),
        "two": np.float32(2),
        "epsilon": np.float32(1e-5),
        "scale": RNG.uniform(0.5, 2, 6),
    }
    constants |= {"shift": RNG.standard_normal(6), "w": RNG.standard_normal((6, 4)), "a": RNG.standard_normal((6, 6))}
    proto = model(nodes, [value("x", ["n", 5, 6])], outputs, constants, 17)
    batch = {"x": RNG.standard_normal((3, 5, 6)).astype(np.float32)}
    sim, path = check_exported(proto, batch, tmp_path, activations=activations)
    other = isobit.QuantSim(proto, activations=activations)
    other.load_encodings(path)
    assert dict(other.encodings) == dict(sim.encodings)


def test_whole_numbers_in_front_of_a_norm_in_steps(tmp_path):
    """The user's own file loads without optimisation alone; what is made of it loads at every level."""
    nodes = [
        node("Cast", "x", "whole", to=TensorProto.INT32),
        node("Cast", "whole", "f", to=TensorProto.FLOAT),
        node("ReduceMean", "f", "mean", axes=[-1]),
        node("Sub", "f mean", "d"),
        node("Pow", "d two", "square"),
        node("ReduceMean", "square", "variance", axes=[-1]),
        node("Add", "variance epsilon", "shifted"),
        node("Sqrt", "shifted", "root"),
        node("Div", "d root", "n"),
        node("Mul", "n scale", "m"),
        node("Add", "m shift", "k"),
        node("MatMul", "k w", "y"),
    ]
    constants = {"two": np.float32(2), "epsilon": np.float32(1e-5), "scale": RNG.uniform(0.5, 2, 6)}
    constants |= {"shift": RNG.standard_normal(6), "w": RNG.standard_normal((6, 4))}
    proto = model(nodes, [value("x", ["n", 6])], [value("y", ["n", 4])], constants, 17)
    batch = {"x": RNG.uniform(-50, 50, (3, 6)).astype(np.float32)}
    check_exported(proto, batch, tmp_path, activations="int16")


def test_one_value_read_twice_behind_a_transpose(tmp_path):
    """In a session of float mode onnxruntime moves the transpose past one of the two inputs alone."""
    nodes = [
        node("Transpose", "x", "a", perm=[1, 0, 2]),
        helper.make_node("LSTM", ["a", "v", "u"], ["", "b"], "n_b", hidden_size=4),
        node("Transpose", "b", "c", perm=[1, 0, 2]),
        node("Softmax", "c", "d", axis=-1),
        node("Pad", "d pads", "s"),
        node("Transpose", "s", "e", perm=[1, 0, 2]),
        node("LSTM", "e w r", "l", hidden_size=4),
        node("Squeeze", "l one", "k"),
        node("Transpose", "k", "t", perm=[1, 0, 2]),
        node("Concat", "t s t", "f", axis=2),
        node("Sigmoid", "f", "y"),
        node("Transpose", "t", "g", perm=[0, 2, 1]),
        node("Sigmoid", "g", "z"),
    ]
    constants = {name: RNG.standard_normal((1, 16, 4)) for name in "vuwr"}
    constants |= {"one": NUMBERS["one"], "pads": constant("pads", [0, 1, 0, 0, 1, 0], np.int64)}
    outputs = [value("y", ["n", 3, 12]), value("z", ["n", 4, 3])]
    proto = model(nodes, [value("x", ["n", 3, 4])], outputs, constants, 17)
    batch = {"x": RNG.standard_normal((2, 3, 4)).astype(np.float32)}
    sim, path = check_exported(proto, batch, tmp_path, activations="int16")
    simulated = sim.run(batch)
    in_float = session(str(path), EVERY_LEVEL[-1], disable_quant_qdq="1").run(None, batch)
    for name, array in zip(simulated, in_float, strict=True):
        np.testing.assert_array_equal(array, simulated[name])
    other = isobit.QuantSim(proto, target=sim.target, activations="int16")
    other.load_encodings(path)
    assert dict(other.encodings) == dict(sim.encodings)


@pytest.mark.parametrize("levels", ["uint8", "int8", "int16"])
@pytest.mark.parametrize("moves", ["Transpose", "Reshape", "all"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_moved_values_that_a_body_reads(moves, levels, elsewhere):
    """As where a layer is a function of nodes: onnxruntime (1.32) ends the process when it copies quantizers there."""
    steps, constants = MOVES[moves]
    ports = [value("i", [], TensorProto.INT64), value("c", [], TensorProto.BOOL), value("s", None)]
    add = [node("Add", "s m", "s2"), node("Identity", "c", "c2")]
    body = helper.make_graph(add, "body", ports, [value("c2", [], TensorProto.BOOL), value("s2", None)])
    nodes = [node("QuantizeLinear", "x scale origin", "k"), node("DequantizeLinear", "k scale origin", "h"), *steps]
    nodes += [node("ReduceSum", "x", "z", keepdims=0), node("Abs", "m" if elsewhere else "x", "a")]
    nodes.append(helper.make_node("Loop", ["twice", "", "z"], ["y"], body=body))
    constants = {**constants, **NUMBERS, "twice": constant("twice", 2, np.int64), "scale": np.float32(0.05)}
    constants["origin"] = constant("origin", 0, levels)
    proto = model(nodes, [value("x", ["n", 6, 4])], [value("y", None), value("a", None)], constants, 21)
    batch = {"x": RNG.standard_normal((3, 6, 4)).astype(np.float32)}
    expected = session(proto.SerializeToString(), LEVELS.ORT_DISABLE_ALL).run(None, batch)
    fitted = ir.from_proto(proto)
    fit_onnxruntime(fitted)
    content = ir.to_proto(fitted).SerializeToString()
    for level in EVERY_LEVEL:
        for result, array in zip(session(content, level).run(None, batch), expected, strict=True):
            np.testing.assert_allclose(result, array, atol=1e-5)


@pytest.mark.parametrize("sizes", [[4, 8, 6, 6], [4, 8, 16, 4], [4, 8, 16, 16]])
@pytest.mark.parametrize("target", ["default", "onnxruntime-cpu"])
def test_cubic_resizes_between_convolutions_run(target: str, sizes: list[int], tmp_path: Path) -> None:
    """onnxruntime gives its integer convolutions channels last, where it has no cubic kernel that shrinks."""
    weights = {
        "first": constant("first", RNG.standard_normal((8, 3, 3, 3))),
        "second": constant("second", RNG.standard_normal((4, 8, 3, 3)) / 8),
        "sizes": constant("sizes", sizes, np.int64),
    }
    nodes = [
        node("Conv", "x first", "a", pads=[1] * 4),
        node("Resize", "a - - sizes", "b", mode="cubic"),
        node("Conv", "b second", "y", pads=[1] * 4),
    ]
    proto = model(nodes, [value("x", [4, 3, 8, 8])], [value("y", [4, 4, *sizes[2:]])], weights, opset=19)
    batch = {"x": RNG.standard_normal((4, 3, 8, 8)).astype(np.float32)}
    check_exported(proto, batch, tmp_path, target=target, progress=False)
