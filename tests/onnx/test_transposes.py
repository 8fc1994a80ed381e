"""Networks in NHWC, as exporters of TensorFlow write them: their transposes cancel, and norms fold through them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from small_models import constant, model, node, opened_alike, runtime, value

import isobit

RNG = np.random.default_rng(17)
TO, BACK = (0, 3, 1, 2), (0, 2, 3, 1)


class Nhwc:
    """A network whose values are NHWC, with transposes around what ONNX has in NCHW alone."""

    def __init__(self, channels: int = 3, size: int = 8, opset: int = 17) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, object] = {}
        self.inputs = [value("x", ["n", size, size, channels])]
        self.outputs: list[onnx.ValueInfoProto] = []
        self.opset = opset

    def constant(self, array: object, dtype: type = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = constant(name, array, dtype)
        return name

    def weight(self, *shape: int) -> str:
        return self.constant(RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:])))

    def vector(self, *shape: int) -> str:
        return self.constant(0.5 + RNG.random(shape))

    def op(self, op: str, *inputs: str, **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(node(op, " ".join(inputs), name, **attributes))
        return name

    def inside(self, op: str, source: str, *inputs: str, **attributes: object) -> str:
        """An operation on NCHW, between two transposes."""
        first = self.op("Transpose", source, perm=TO)
        return self.op("Transpose", self.op(op, first, *inputs, **attributes), perm=BACK)

    def conv(self, source: str, channels: int, out: int, kernel: int = 3) -> str:
        return self.inside("Conv", source, self.weight(out, channels, kernel, kernel), pads=[kernel // 2] * 4)

    def norm(self, source: str, channels: int) -> str:
        return self.inside("BatchNormalization", source, *(self.vector(channels) for _ in range(4)))

    def scaled(self, source: str, channels: int) -> str:
        """A norm as it is written after its statistics were folded."""
        return self.op("Add", self.op("Mul", source, self.vector(channels)), self.vector(channels))

    def model(self, *results: str) -> onnx.ModelProto:
        outputs = [value(name, None) for name in results]
        return model(self.nodes, self.inputs, outputs, self.constants, self.opset)


def residual(net: Nhwc) -> str:
    x = net.op("Relu", net.norm(net.conv("x", 3, 8), 8))
    y = net.op("LeakyRelu", net.scaled(net.conv(x, 8, 8), 8))
    pooled = net.inside("MaxPool", net.op("Add", x, y), kernel_shape=[2, 2], strides=[2, 2])
    joined = net.op("Concat", pooled, net.conv(pooled, 8, 4), axis=-1)
    return net.op("MatMul", net.op("ReduceMean", joined, axes=[1, 2], keepdims=0), net.weight(12, 5))


def squeeze_and_excite(net: Nhwc) -> str:
    x = net.op("Relu", net.scaled(net.conv("x", 3, 8), 8))
    by_conv = net.op("ReduceMean", x, axes=[1, 2], keepdims=1)
    by_conv = net.op("Sigmoid", net.conv(net.op("Relu", net.conv(by_conv, 8, 4, 1)), 4, 8, 1))
    x = net.op("Mul", x, by_conv)
    by_product = net.op("ReduceMean", x, axes=[1, 2], keepdims=0)
    by_product = net.op("Sigmoid", net.op("MatMul", by_product, net.weight(8, 8)))
    x = net.op("Mul", net.op("Reshape", by_product, net.constant([-1, 1, 1, 8], np.int64)), x)
    return net.op("ReduceMax", net.scaled(net.conv(x, 8, 6), 6), axes=[1, 2], keepdims=0)


def decoder(net: Nhwc) -> str:
    deep = net.inside("AveragePool", net.conv("x", 3, 8), kernel_shape=[2, 2], strides=[2, 2])
    scales = net.constant([1, 1, 2, 2])
    up = net.inside("Resize", net.op("Tanh", deep), "-", scales, mode="linear")
    joined = net.op("Concat", up, net.conv("x", 3, 4), axis=3)
    padded = net.op("Pad", joined, net.constant([0, 1, 1, 0, 0, 1, 1, 0], np.int64))
    valid = net.inside("Conv", padded, net.weight(8, 12, 3, 3))
    slopes = net.op("PRelu", net.norm(valid, 8), net.vector(1, 1, 8))
    return net.op("ReduceMean", slopes, axes=[1, 2], keepdims=0)


def slices(net: Nhwc) -> str:
    """Parts of a grid side by side, as the stem of some detectors."""
    whole = net.conv("x", 3, 4)
    parts = []
    for row in (0, 1):
        for column in (0, 1):
            bounds = [[row, column], [100, 100], [1, 2], [2, 2]]
            parts.append(net.op("Slice", whole, *(net.constant(numbers, np.int64) for numbers in bounds)))
    joined = net.op("Concat", *parts, axis=3)
    first, second = (f"half{index}" for index in (0, 1))
    net.nodes.append(node("Split", joined, f"{first} {second}", axis=-1))
    return net.op("ReduceMean", net.conv(net.op("Mul", first, second), 8, 4), axes=[1, 2], keepdims=0)


def sizes_at_run_time(net: Nhwc) -> str:
    """The sizes of a tensor that is moved are read in their old order."""
    x = net.op("Relu", net.scaled(net.conv("x", 3, 4), 4))
    shape = net.op("Shape", x)
    spatial = net.op("Slice", shape, *(net.constant([n], np.int64) for n in (1, 3)))
    doubled = net.op("Mul", spatial, net.constant([2, 2], np.int64))
    target = net.op("Concat", net.constant([2, 4], np.int64), doubled, axis=0)
    up = net.inside("Resize", x, "-", "-", target, mode="nearest")
    return net.op("ReduceMean", net.conv(up, 4, 4), axes=[1, 2], keepdims=0)


def one_dimension(net: Nhwc) -> str:
    """Convolutions over time, written with an axis of size one; norms stand behind the views."""
    x = net.op("ReduceMean", "x", axes=[2], keepdims=0)
    one = net.constant([1], np.int64)
    for channels in (3, 6, 6):
        wide = net.op("Unsqueeze", x, one)
        wide = net.inside("Conv", wide, net.weight(6, channels, 1, 3), pads=[0, 1, 0, 1])
        x = net.op("Relu", net.scaled(net.op("Squeeze", wide, one), 6))
    return net.op("ReduceMax", x, axes=[1], keepdims=0)


NETWORKS: dict[str, tuple[Callable[[Nhwc], str], int]] = {  # and the transposes that a person would write
    "residual": (residual, 1),
    "squeeze and excite": (squeeze_and_excite, 1),
    "decoder": (decoder, 1),
    "slices": (slices, 1),
    "sizes at run time": (sizes_at_run_time, 1),
    "one dimension": (one_dimension, 1),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_transposes_cancel_and_norms_fold(name: str) -> None:
    build, needed = NETWORKS[name]
    net = Nhwc()
    proto = net.model(build(net))
    data = [RNG.standard_normal((2, 8, 8, 3)).astype(np.float32) for _ in range(3)]
    sim = isobit.quantize(proto, data, method="minmax", progress=False)  # compares with the file as given
    ops = Counter(n.op for n in sim.graph.nodes)
    assert ops["Transpose"] <= needed, sim.graph
    constants = {"Mul", "Add", "BatchNormalization"}
    scales = [n for n in sim.graph.nodes if n.op in constants and any(i in sim.graph.weights for i in n.inputs)]
    assert not scales
    assert sim.report.coverage.compute == 1
    for result, expected in zip(sim.run_float(data[0]).values(), runtime(proto, {"x": data[0]}).values(), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_what_must_be_last_stays_there() -> None:
    """A head on the last axis needs its transpose, and outputs keep their name and layout."""
    net = Nhwc()
    x = net.op("Relu", net.scaled(net.conv("x", 3, 8), 8))
    head = net.op("Softmax", net.op("MatMul", x, net.weight(8, 4)), axis=-1)
    maps = net.op("Sigmoid", net.conv(x, 8, 2))
    rows = net.op("Reshape", net.conv(x, 8, 5), net.constant([0, -1, 5], np.int64))
    proto = net.model(head, maps, rows)
    opened = opened_alike(proto, {"x": RNG.standard_normal((2, 8, 8, 3)).astype(np.float32)})
    ops = Counter(n.op for n in opened.graph.nodes)
    assert ops["Transpose"] == 4  # the input, and each output
    assert list(opened.graph.outputs) == [head, maps, rows]


def test_one_value_for_several_outputs_and_layouts() -> None:
    net = Nhwc()
    x = net.op("Transpose", "x", perm=TO)
    conv = net.op("Conv", x, net.weight(4, 3, 1, 1))
    first = net.op("Transpose", conv, perm=BACK)
    again = net.op("Transpose", net.op("Transpose", first, perm=TO), perm=BACK)
    relu = net.op("Relu", first)
    back = net.op("Transpose", relu, perm=TO)
    kept = net.op("Conv", back, net.weight(4, 4, 1, 1))
    proto = net.model(first, again, conv, relu, back, kept)
    opened_alike(proto, {"x": RNG.standard_normal((2, 8, 8, 3)).astype(np.float32)})


def test_bodies_read_what_was_moved() -> None:
    net = Nhwc()
    x = net.op("Relu", net.conv("x", 3, 4))
    branch = lambda op: onnx.helper.make_graph([node(op, x, f"{op}_out")], op, [], [value(f"{op}_out", None)])  # noqa: E731
    total = net.op("ReduceSum", x, keepdims=0)
    decision = net.op("Greater", total, net.constant(0.0))
    chosen = net.op("If", decision, then_branch=branch("Tanh"), else_branch=branch("Neg"))
    both = net.op("Add", chosen, net.conv(x, 4, 4))
    for sign in (1, -1):
        opened_alike(net.model(both), {"x": sign * RNG.random((2, 8, 8, 3)).astype(np.float32)})


POINTWISE = ("Relu", "Sigmoid", "Neg", "Abs", "Identity", "Floor", "Tanh", "HardSigmoid", "Softplus")


@pytest.mark.parametrize("seed", range(12))
def test_random_networks_stay_the_same_function(seed: int) -> None:
    """Whatever is drawn between transposes of any kind, the opened model computes what the file computes."""
    rng = np.random.default_rng(seed)
    net = Nhwc(channels=4, size=4)
    values = [("x", 4)]  # every value is (n, 4, 4, 4), so that each permutation fits
    integers = lambda *n: net.constant(n, np.int64)  # noqa: E731
    for _ in range(14):
        source = values[rng.integers(len(values))][0]
        other = values[rng.integers(len(values))][0]
        axis = int(rng.integers(1, 4))
        permutation = [0, *(int(a) + 1 for a in rng.permutation(3))]
        made: dict[str, Callable[[], str]] = {
            "pointwise": lambda s=source: net.op(str(rng.choice(POINTWISE)), s),
            "transpose": lambda s=source, p=permutation: net.op("Transpose", s, perm=p),
            "conv": lambda s=source: net.conv(s, 4, 4),
            "weight on the left": lambda s=source: net.op("MatMul", net.weight(4, 4), s),
            "sum": lambda s=source, o=other: net.op("Add", s, o),
            "product": lambda s=source: net.op("Mul", s, net.vector(*((4,), (4, 1), (1, 4, 1), ())[rng.integers(4)])),
            "where": lambda s=source, o=other: net.op("Where", net.op("Less", s, o), s, net.constant(0.5)),
            "mean": lambda s=source, o=other, a=axis: net.op(
                "Add", o, net.op("ReduceMean", s, axes=[a, (a % 3) + 1], keepdims=1)
            ),
            "halves": lambda s=source, o=other, a=axis: net.op(
                "Concat",
                net.op("Slice", s, integers(0), integers(2), integers(a)),
                net.op("Slice", o, integers(-2), integers(9), integers(a - 4)),
                axis=a,
            ),
            "pad": lambda s=source, a=axis: net.op(
                "Slice", net.op("Pad", s, integers(*(int(i == a) for i in range(8)))), *map(integers, (0, 4, a))
            ),
            "softmax": lambda s=source, a=axis: net.op("Softmax", s, axis=a),
            "squeeze": lambda s=source, o=other, a=axis: net.op(
                "Mul", o, net.op("Unsqueeze", net.op("ReduceMax", s, axes=[a], keepdims=0), integers(a))
            ),
            "tile": lambda s=source, a=axis: net.op(
                "Slice", net.op("Tile", s, integers(*(1 + (i == a) for i in range(4)))), *map(integers, (2, 6, a))
            ),
        }
        kind = str(rng.choice([*made, "transpose", "transpose", "transpose"]))
        values.append((made[kind](), 4))
    results = [name for name, _ in values[-4:]]
    feeds = {"x": rng.standard_normal((2, 4, 4, 4)).astype(np.float32)}
    opened_alike(net.model(*results), feeds, atol=1e-4)


@pytest.mark.parametrize("form", ["MatMul", "Gemm", "Einsum"])
def test_products_that_are_read_transposed_stand_behind_what_is_moved(form: str) -> None:
    """Their transposes are put in while a file is read, before anybody has inferred the shapes behind them."""
    net = Nhwc()
    net.inputs = [value("x", [6, 9])]
    joined = net.op("Concat", net.op("Concat", "x", "x", axis=-1), "x", axis=1)
    if form == "MatMul":
        out = net.op("MatMul", net.weight(4, 6), net.op("Concat", net.op("Relu", joined), joined, axis=1))
    elif form == "Gemm":
        out = net.op("Gemm", joined, net.weight(6, 4), net.vector(4), transA=1)
    else:
        out = net.op("Einsum", joined, net.weight(6, 4), equation="ib,io->bo")
    opened_alike(net.model(out), {"x": RNG.standard_normal((6, 9)).astype(np.float32)})


def test_an_input_of_another_type_is_moved_too() -> None:
    net = Nhwc()
    net.inputs = [value("x", ["n", 8, 8, 3], TensorProto.UINT8)]
    x = net.op("Cast", "x", to=TensorProto.FLOAT)
    x = net.op("Div", net.op("Sub", x, net.vector(3)), net.vector(3))
    x = net.op("Relu", net.scaled(net.conv(x, 3, 4), 4))
    out = net.op("ReduceMean", net.conv(x, 4, 4), axes=[1, 2], keepdims=0)
    opened = opened_alike(net.model(out), {"x": RNG.integers(0, 255, (2, 8, 8, 3)).astype(np.uint8)}, atol=1e-3)
    assert Counter(n.op for n in opened.graph.nodes)["Transpose"] == 1
