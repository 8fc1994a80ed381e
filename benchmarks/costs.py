"""What operations cost in float and in integers on this processor, as tables of a target file.

    python benchmarks/costs.py

Each operation runs alone in onnxruntime, once in float and once between QuantizeLinear and DequantizeLinear, on one
thread, with `session.x64quantprecision=1` where the processor has no VNNI; onnxruntime's own profile says what its
kernels took. A cost is nanoseconds for an element of the largest tensor
that the operation reads or computes, the least of the runs and of rounds over all operations, since machines are
shared. An operation for which the profile names no kernel of integers is left out. `multiply` and
`integer_multiply` are nanoseconds for a multiply-accumulate of a layer with weights, `layer_element` for an element
that it reads or writes: what a depthwise layer, which multiplies little, takes beside its multiply-accumulates. The
second table tells convolutions that integers make slower.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from processor import processor

Shape = tuple[int, ...]

#: Op, its attributes and the shapes of its inputs: those of a layer in the middle of a CNN, and of an attention.
OPERATIONS: Mapping[str, tuple[Mapping[str, Any], Sequence[Shape]]] = {
    "Add": ({}, [(1, 64, 56, 56), (1, 64, 56, 56)]),
    "Mul": ({}, [(1, 64, 56, 56), (1, 64, 1, 1)]),
    "AveragePool": ({"kernel_shape": (3, 3), "strides": (2, 2)}, [(1, 64, 56, 56)]),
    "GlobalAveragePool": ({}, [(1, 64, 56, 56)]),
    "LeakyRelu": ({}, [(1, 64, 56, 56)]),
    "Sigmoid": ({}, [(1, 64, 56, 56)]),
    "Softmax": ({"axis": -1}, [(1, 12, 128, 128)]),
    "Concat": ({"axis": 1}, [(1, 32, 56, 56), (1, 32, 56, 56)]),
}

#: Operations that run in float in any file: attributes, the shape of a picture or of what a transformer computes, and
#: constants. What the layer before computes along with its own (Relu, Clip), and what only moves values, is not here.
_IMAGE, _TOKENS = (1, 64, 56, 56), (1, 128, 384)
_CHANNELS, _WIDTH = np.full(64, 0.5, np.float32), np.full(384, 0.5, np.float32)
_CURVES = ("Gelu", "Tanh", "Erf", "Exp", "Log", "Sqrt", "Reciprocal", "Sin", "Cos", "Neg", "Abs")
FLOATS: Mapping[str, tuple[Mapping[str, Any], Shape, Sequence[Any]]] = {
    "Sub": ({}, _IMAGE, [_CHANNELS[:, None, None]]),
    "Div": ({}, _IMAGE, [_CHANNELS[:, None, None]]),
    "Pow": ({}, _TOKENS, [np.float32(2.0)]),
    **{op: ({}, _IMAGE, [_CHANNELS[:, None, None]]) for op in ("Max", "Min")},
    "PRelu": ({}, _IMAGE, [_CHANNELS[:, None, None]]),
    **{
        op: ({}, _IMAGE, [])
        for op in ("HardSwish", "HardSigmoid", "Elu", "Selu", "Softplus", "Softsign", "Mish", "Swish")
    },
    **{op: ({}, _TOKENS, []) for op in _CURVES},
    "LayerNormalization": ({}, _TOKENS, [_WIDTH, _WIDTH]),
    "RMSNormalization": ({}, _TOKENS, [_WIDTH]),
    "GroupNormalization": ({"num_groups": 8}, _IMAGE, [_CHANNELS, _CHANNELS]),
    "InstanceNormalization": ({}, _IMAGE, [_CHANNELS, _CHANNELS]),
    "BatchNormalization": ({}, _IMAGE, [_CHANNELS] * 4),
    "LogSoftmax": ({"axis": -1}, (1, 12, 128, 128), []),
    **{op: ({}, _TOKENS, [np.array([-1])]) for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")},
}

#: Op of the graph, that of ONNX, its attributes, the shapes of its inputs (all but the first are weights), and its
#: multiply-accumulates: layers in the middle of a CNN, of a transformer and of a recurrent network.
LAYERS: Mapping[str, tuple[str, Mapping[str, Any], Sequence[Shape], int]] = {
    "Conv": ("Conv", {"pads": (1, 1, 1, 1)}, [(1, 64, 28, 28), (64, 64, 3, 3)], 64 * 64 * 9 * 28 * 28),
    "ConvTranspose": ("ConvTranspose", {"strides": (2, 2)}, [(1, 64, 14, 14), (64, 32, 2, 2)], 64 * 32 * 4 * 14 * 14),
    "Linear": ("Gemm", {}, [(64, 384), (384, 384)], 64 * 384 * 384),
    "MatMul": ("MatMul", {}, [(12, 128, 32), (12, 32, 128)], 12 * 128 * 32 * 128),
    "LSTM": ("LSTM", {"hidden_size": 64}, [(32, 1, 64), (1, 256, 64), (1, 256, 64)], 32 * 2 * 256 * 64),
    "GRU": ("GRU", {"hidden_size": 64}, [(32, 1, 64), (1, 192, 64), (1, 192, 64)], 32 * 2 * 192 * 64),
}
_DEPTHWISE = ({"pads": (1, 1, 1, 1), "group": 96}, [(1, 96, 56, 56), (96, 1, 3, 3)])
#: A convolution that multiplies little and computes much, and depthwise ones of few channels.
_POINTWISE = ({}, [(1, 16, 112, 112), (32, 16, 1, 1)])
_THIN = [({"pads": (1, 1, 1, 1), "group": n}, [(1, n, 56, 56), (n, 1, 3, 3)]) for n in (16, 32)]
#: What onnxruntime computes along with a float convolution.
_WITH_CONVOLUTION = ("HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "LeakyRelu")
_OPSET = 24  # the first with Swish
_FLOAT_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")


def model_of(op: str, attributes: Mapping[str, Any], shapes: Sequence[Shape], *, quantized: bool) -> onnx.ModelProto:
    """A model of one operation; `quantized` with grids of 8 bits on what it reads and computes."""
    grid = {"scale": np.float32(1 / 32), "zero": np.uint8(128), "one": np.float32(1 / 256), "nought": np.uint8(0)}
    nodes, names = [], []

    def on_grid(source: str, result: str, of: tuple[str, str]) -> None:
        nodes.append(helper.make_node("QuantizeLinear", [source, *of], [f"{source}.q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{source}.q", *of], [result]))

    for index in range(len(shapes)):
        names.append(f"x{index}")
        if quantized:
            on_grid(f"x{index}", f"x{index}.dq", ("scale", "zero"))
            names[-1] += ".dq"
    nodes.append(helper.make_node(op, names, ["r" if quantized else "y"], op, **attributes))
    if quantized:
        on_grid("r", "y", ("one", "nought") if op in ("Sigmoid", "Softmax") else ("scale", "zero"))
    inputs = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, shape) for i, shape in enumerate(shapes)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    constants = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in grid.items()]
    graph = helper.make_graph(nodes, op, inputs, outputs, constants if quantized else [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)


def node_times(model: onnx.ModelProto, runs: int) -> dict[tuple[str, str], float]:
    """Least nanoseconds of one run of each node of a model, by the operation of its kernel and its name."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_profiling = True
    if "no VNNI" in processor():  # the session that `isobit quantize` advises there
        options.add_session_config_entry("session.x64quantprecision", "1")
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        feeds = {i.name: random.standard_normal(i.shape, np.float32) for i in session.get_inputs()}
        for _ in range(runs):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    times: dict[tuple[str, str], float] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = (event["args"]["op_name"], event["name"])
            times[key] = min(times.get(key, math.inf), 1e3 * event["dur"])
    return times


def kernel_times(model: onnx.ModelProto, runs: int) -> dict[str, float]:
    """Least nanoseconds of one run of each kernel of a model, by operation, for the longest of its nodes."""
    longest: dict[str, float] = {}
    for (op, _), time in node_times(model, runs).items():
        longest[op] = max(longest.get(op, 0.0), time)
    return longest


def float_model(op: str, attributes: Mapping[str, Any], shape: Shape, constants: Sequence[Any]) -> onnx.ModelProto:
    """A model of one operation in float."""
    tensors = [onnx.numpy_helper.from_array(np.asarray(value), f"c{i}") for i, value in enumerate(constants)]
    node = helper.make_node(op, ["x", *(tensor.name for tensor in tensors)], ["y"], op, **attributes)
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    graph = helper.make_graph([node], op, given, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)


def layer_of(op: str, attributes: Mapping[str, Any], shapes: Sequence[Shape], *, quantized: bool) -> onnx.ModelProto:
    """A model of one layer; a MatMul reads two tensors, other layers one and their weights, which are int8."""
    data = 2 if op == "MatMul" else 1
    names = [f"x{index}" for index in range(len(shapes))]
    random, nodes, read = np.random.default_rng(0), list[onnx.NodeProto](), list(names)
    constants: dict[str, Any] = {"scale": np.float32(1 / 32), "zero": np.uint8(128)}
    for index, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        if index >= data:
            weight = random.standard_normal(shape, np.float32)
            constants[name] = np.clip(np.rint(32 * weight), -127, 127).astype(np.int8) if quantized else weight
        if quantized:
            source, zero = (f"{name}_q", "zero") if index < data else (name, f"{name}_zero")
            if index >= data:
                constants[zero] = np.int8(0)  # one each: onnxruntime makes uint8 of it under its own name
            else:
                nodes.append(helper.make_node("QuantizeLinear", [name, "scale", "zero"], [source]))
            nodes.append(helper.make_node("DequantizeLinear", [source, "scale", zero], [f"{name}_d"]))
            read[index] = f"{name}_d"
    nodes.append(helper.make_node(op, read, ["r" if quantized else "y"], op, **attributes))
    if quantized:
        nodes.append(helper.make_node("QuantizeLinear", ["r", "scale", "zero"], ["r_q"]))
        nodes.append(helper.make_node("DequantizeLinear", ["r_q", "scale", "zero"], ["y"]))
    used = {name for node in nodes for name in node.input}
    tensors = [onnx.numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items() if name in used]
    inputs = [helper.make_tensor_value_info(names[i], TensorProto.FLOAT, shapes[i]) for i in range(data)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, op, inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)


def measure_layers(runs: int) -> tuple[dict[str, float], dict[str, float]]:
    """Nanoseconds for a multiply-accumulate, in float, and in integers where there is a kernel of them."""
    floats, integers = dict[str, float](), dict[str, float]()
    for name, (op, attributes, shapes, macs) in LAYERS.items():
        kernels = kernel_times(layer_of(op, attributes, shapes, quantized=False), runs)
        floats[name] = max(time for kernel, time in kernels.items() if not kernel.startswith("Reorder")) / macs
        kernels = kernel_times(layer_of(op, attributes, shapes, quantized=True), runs)
        found = [time for kernel, time in kernels.items() if kernel.startswith(("QLinear", "QGemm", "MatMulInteger"))]
        if found:
            integers[name] = max(found) / macs
    return floats, integers


def measure_element(runs: int, multiply: float) -> float:
    """Nanoseconds for an element of input and output of a convolution, beside those of its multiply-accumulates."""
    attributes, shapes = _DEPTHWISE
    kernels = kernel_times(layer_of("Conv", attributes, shapes, quantized=False), runs)
    elements = int(np.prod(shapes[0]))
    return max(0.0, kernels["Conv"] - multiply * elements * 9) / (2 * elements)


def measure_convolutions(runs: int) -> dict[str, Any]:
    """What tells thin convolutions from others; see `isobit.targets.ConvolutionCosts`."""
    multiply, integer_multiply = (table["Conv"] for table in measure_layers(runs))
    attributes, shapes = _POINTWISE
    kernels = kernel_times(layer_of("Conv", attributes, shapes, quantized=True), runs)
    written = 2 * int(np.prod(shapes[0]))
    element = max(0.0, kernels["QLinearConv"] / written - 16 * integer_multiply)
    taps, moves = [], []
    for attributes, shapes in _THIN:
        written, channels = int(np.prod(shapes[0])), shapes[0][1]
        kernels = kernel_times(layer_of("Conv", attributes, shapes, quantized=True), runs)
        spent = written * (element + 9 * integer_multiply)
        taps.append(max(0.0, kernels["QLinearConv"] - spent) / (9 * written / channels))
        kernels = kernel_times(layer_of("Conv", attributes, shapes, quantized=False), runs)
        moves += [kernels[name] / written for name in ("ReorderInput", "ReorderOutput")]
    small = kernel_times(layer_of("Conv", {"group": 16}, [(1, 16, 1, 1), (16, 1, 1, 1)], quantized=True), runs)
    image = int(np.prod(_IMAGE))
    kernels = kernel_times(model_of("Sigmoid", {}, [_IMAGE], quantized=True), runs)
    curves = {op: node_times(float_model(op, {}, _IMAGE, []), runs) for op in _WITH_CONVOLUTION}
    return {
        # MLAS' block of the layout NCHWc, which it computes float convolutions in.
        "channel_block": 16 if "AVX-512" in processor() else 8,
        "multiply": multiply,
        "integer_multiply": integer_multiply,
        "element": measure_element(runs, multiply),
        "integer_element": element,
        "integer_tap": statistics.mean(taps),
        "reorder": statistics.median(moves),
        "quantize": kernels["QuantizeLinear"] / image,
        "dequantize": kernels["DequantizeLinear"] / image,
        "node": small["QuantizeLinear"],
        "curves": {op: sum(nodes.values()) / image for op, nodes in curves.items()},
    }


def measure(runs: int) -> dict[str, Any]:
    """The table of this processor."""
    floats: dict[str, float] = {}
    integers: dict[str, float] = {}
    conversions: dict[str, list[float]] = {name: [] for name in _FLOAT_CONVERSIONS}
    for op, (attributes, shapes) in OPERATIONS.items():
        size = sum(int(np.prod(shape)) for shape in shapes) if op == "Concat" else int(np.prod(shapes[0]))
        in_float = kernel_times(model_of(op, attributes, shapes, quantized=False), runs)
        in_integers = kernel_times(model_of(op, attributes, shapes, quantized=True), runs)
        conversions["QuantizeLinear"].append(in_integers.pop("QuantizeLinear") / int(np.prod(shapes[0])))
        if op in ("Add", "Mul", "LeakyRelu", "Sigmoid", "Softmax"):  # results as large as the first input
            conversions["DequantizeLinear"].append(in_integers.pop("DequantizeLinear") / size)
        kernel = next((time for name, time in in_integers.items() if name.startswith("QLinear")), None)
        if kernel is not None:
            floats[op], integers[op] = in_float[op] / size, kernel / size
    for op, (attributes, shape, constants) in FLOATS.items():
        nodes = node_times(float_model(op, attributes, shape, constants), runs)
        floats[op] = sum(nodes.values()) / math.prod(shape)
    multiply, integer_multiply = measure_layers(runs)
    return {
        "quantize": statistics.median(conversions["QuantizeLinear"]),
        "dequantize": statistics.median(conversions["DequantizeLinear"]),
        "float": floats,
        "integer": integers,
        "multiply": multiply,
        "integer_multiply": integer_multiply,
        "layer_element": measure_element(runs, multiply["Conv"]),
    }


def least(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The least of each figure."""
    first = tables[0]
    return {
        key: least([table[key] for table in tables]) if isinstance(first[key], Mapping) else min(t[key] for t in tables)
        for key in first
    }


def as_toml(name: str, table: Mapping[str, Any]) -> str:
    """The table as a target file holds it."""
    lines = [f"[[{name}]]", f'processor = "{processor()}"']
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines.append(f"{key} = {{ " + ", ".join(f"{op} = {cost:.3g}" for op, cost in value.items()) + " }")
        else:
            lines.append(f"{key} = {value:.3g}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100, help="runs of each operation in each round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    for name, measured in (("costs", measure), ("convolutions", measure_convolutions)):
        print(as_toml(name, least([measured(arguments.runs) for _ in range(arguments.rounds)])))


if __name__ == "__main__":
    main()
