"""A model of an old opset computes after opening what onnxruntime computes of the file, op by op."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_models import constant, model, node, opened_alike, ops, value

RNG = np.random.default_rng(2)
IMAGE = RNG.standard_normal((2, 3, 6, 6)).astype(np.float32)


def opened(nodes, constants, opset, rank=4, x=IMAGE):
    proto = model(nodes, [value("x", ["n", *x.shape[1:]])], [value("y", [None] * rank)], constants, opset)
    if opset < 9:
        for tensor in proto.graph.initializer:
            proto.graph.input.append(value(tensor.name, list(tensor.dims), tensor.data_type))
    return opened_alike(proto, {"x": x})


SCALES = [[1, 1, 2, 2], [1, 1, 3, 2], [1, 1, 1.5, 2.5], [1, 1, 0.5, 0.5], [1, 1, 0.4, 0.7], [1, 1, 0.4, 1.7]]


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scales", SCALES)
def test_resizing(opset, mode, scales):
    constants = {"s": np.float32(scales)}
    if opset < 9:
        nodes, constants = [node("Upsample", "x", "y", mode=mode, scales=[float(s) for s in scales])], {}
    elif opset == 9:
        nodes = [node("Upsample", "x s", "y", mode=mode)]
    elif opset == 10:
        nodes = [node("Resize", "x s", "y", mode=mode)]
    else:
        constants["r"] = np.zeros(0, np.float32)
        nodes = [node("Resize", "x r s", "y", mode=mode, nearest_mode="ceil")]
    if opset < 10 and min(scales) < 1:
        pytest.skip("Upsample does not shrink")
    assert set(ops(opened(nodes, constants, opset))) == {"Resize"}


def test_scales_that_are_computed():
    nodes = [
        node("Shape", "x", "sizes"),
        node("Cast", "sizes", "real", to=TensorProto.FLOAT),
        node("Div", "real real", "one"),
        node("Mul", "one factor", "s"),
        node("Upsample", "x s", "y", mode="linear"),
    ]
    opened(nodes, {"factor": np.float32([1, 1, 2, 2])}, 9)


@pytest.mark.parametrize("opset", [7, 11, 12, 13])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("axis", [None, 0, 1, 2, 3, -1, -2])
def test_softmax_and_its_kin(opset, op, axis):
    if axis is not None and axis < 0 and opset < 11:
        pytest.skip("axes do not count from the end yet")
    opened([node(op, "x", "y", **({} if axis is None else {"axis": axis}))], {}, opset)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_one_axis_stays_one_node(op):
    pooled = [node("GlobalAveragePool", "x", "p"), node(op, "p", "y", axis=1)]
    assert ops(opened(pooled, {}, 11)) == ["GlobalAveragePool", op]
    assert ops(opened([node(op, "x", "y", axis=3)], {}, 9)) == [op]


def test_softmax_in_a_branch():
    """Bodies have the opset of their model."""

    def branch(result: str, axis: int) -> onnx.GraphProto:
        nodes = [helper.make_node("Hardmax", ["x"], [result], axis=axis)]
        return helper.make_graph(nodes, result, [], [value(result, ["n", 3, 6, 6])])

    nodes = [
        node("ReduceMax", "x", "m", keepdims=0),
        node("Greater", "m limit", "c"),
        helper.make_node("If", ["c"], ["y"], "if", then_branch=branch("a", 1), else_branch=branch("b", 2)),
    ]
    for limit in (-100, 100):
        opened(nodes, {"limit": np.float32(limit)}, 11)


@pytest.mark.parametrize("opset", [7, 9, 10])
@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", None])
@pytest.mark.parametrize("value", [None, 0.0, 2.0])
def test_padding(opset, mode, value):
    """Exporters write a value whatever the mode, and leave the mode out where it is constant."""
    settings = {key: given for key, given in (("mode", mode), ("value", value)) if given is not None}
    pads = [0, 0, 1, 2, 0, 0, 2, 0]
    assert ops(opened([node("Pad", "x", "y", pads=pads, **settings)], {}, opset)) == ["Pad"]


@pytest.mark.parametrize("opset", [18, 20, 21, 23])
def test_opening_is_silent_where_a_type_is_not_inferred(opset, caplog):
    """ONNX infers the shape of GroupNormalization alone: without a type, what is written of it is a warning."""
    size = 2 if opset < 21 else 4
    nodes = [
        node("Concat", "x x", "c", axis=1),
        node("Slice", "c zero four one", "d"),
        node("GroupNormalization", "d s b", "g", num_groups=2),
        node("MatMul", "g w", "y"),
    ]
    constants = {"s": np.ones(size), "b": np.ones(size), "w": RNG.standard_normal((6, 5))}
    constants |= {name: constant(name, [number], np.int64) for name, number in (("zero", 0), ("four", 4), ("one", 1))}
    model_ = opened(nodes, constants, opset)
    assert model_.graph.tensors[model_.graph.nodes[-1].inputs[0]].dtype == "float32"
    assert not caplog.records


def test_group_norm_whose_scale_is_one_a_group():
    nodes = [node("Concat", "x x", "c", axis=1), node("GroupNormalization", "c s b", "y", num_groups=2)]
    constants = {"s": np.float32([0.5, 2]), "b": np.float32([1, -1])}
    for opset in (18, 20):
        assert "GroupNormalization" in ops(opened(nodes, constants, opset))


@pytest.mark.parametrize("opset", [18, 20, 21])
def test_group_norms_one_behind_another(opset):
    """ONNX infers no shape behind the first, and without one the converter leaves scale and shift as they are."""
    size = 2 if opset < 21 else 6
    scale, shift = np.float32([0.5, 2] * (size // 2)), np.float32([1, -1] * (size // 2))
    nodes = [
        node("Concat", "x x", "c", axis=1),
        node("GroupNormalization", "c s b", "g", num_groups=2),
        node("Relu", "g", "r"),
        node("GroupNormalization", "r s b", "y", num_groups=2, epsilon=1e-3),
    ]
    opened_ = opened(nodes, {"s": scale, "b": shift}, opset)
    assert [opened_.graph.tensors[n.outputs[0]].shape for n in opened_.graph.nodes] == [("n", 6, 6, 6)] * 4


def test_group_norm_of_any_number_of_channels():
    proto = model(
        [node("Abs", "s", "scale"), node("GroupNormalization", "x scale b", "y", num_groups=3)],
        [value("x", ["n", "c", None, None]), value("s", [3])],
        [value("y", [None] * 4)],
        {"b": np.float32([1, -1, 0])},
        20,
    )
    x = RNG.standard_normal((2, 6, 4, 5)).astype(np.float32)
    opened_alike(proto, {"x": x, "s": np.float32([0.5, -2, 1])})


OTHERS = {
    "Clip": (7, [node("Clip", "x", "y", min=-0.5)], {}),
    "Pad": (10, [node("Pad", "x", "y", pads=[0, 0, 1, 1, 0, 0, 2, 0], mode="constant", value=2.0)], {}),
    "Slice": (9, [node("Slice", "x", "y", axes=[2, -1], starts=[1, -3], ends=[-1, 100])], {}),
    "TopK": (9, [node("TopK", "x", "y i", axis=2, k=3)], {}),
    "Split": (12, [node("Split", "x", "y z", axis=2, split=[2, 4])], {}),
    "ReduceSum": (11, [node("ReduceSum", "x", "y", axes=[1, 2])], {}),
    "AveragePool": (10, [node("AveragePool", "x", "y", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)], {}),
    "Dropout": (7, [node("Dropout", "x", "y", ratio=0.3)], {}),
    "GridSample": (16, [node("GridSample", "x g", "y", mode="bicubic")], {"g": RNG.standard_normal((2, 4, 4, 2))}),
    "Scatter": (9, [node("Scatter", "x i u", "y", axis=1)],
                {"i": constant("i", np.zeros((2, 1, 6, 6)), np.int64), "u": RNG.standard_normal((2, 1, 6, 6))}),
}  # fmt: skip


@pytest.mark.parametrize("op", OTHERS)
def test_what_the_converter_gets_right(op):
    opset, nodes, constants = OTHERS[op]
    opened(nodes, constants, opset)


POOLS = [
    {"kernel_shape": [1, 1], "strides": [2, 2]},
    {"kernel_shape": [1, 3], "strides": [3, 2]},
    {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [2, 3], "strides": [2, 2], "pads": [1, 0, 1, 0]},
    {"kernel_shape": [3, 1], "strides": [2, 3], "pads": [1, 0, 1, 0]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
]


@pytest.mark.parametrize("opset", [10, 12, 19, 21, 22])
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("settings", POOLS)
@pytest.mark.parametrize("size", [(5, 6), (6, 5), (7, 8)])
def test_pooling_that_rounds_up(opset, op, settings, size):
    """ONNX infers one window too many where the last would begin behind the values, and sizes are folded from that."""
    nodes = [
        node(op, "x", "p", ceil_mode=1, **settings),
        node(op, "p", "q", kernel_shape=[1, 1], strides=[2, 2], ceil_mode=1),
        node("Shape", "q", "shape"),
        node("Gather", "shape two", "height", axis=0),
        node("Cast", "height", "real", to=TensorProto.FLOAT),
        node("Mul", "q real", "y"),
    ]
    x = RNG.standard_normal((2, 3, *size)).astype(np.float32)
    opened(nodes, {"two": constant("two", 2, np.int64)}, opset, x=x)


@pytest.mark.parametrize("size", [(9, 14), (9, 19), (4, 9)])
def test_places_of_maxima_are_those_in_all_values(size):
    """Strides wider than the window leave values behind the last one, which other places are not counted without."""
    nodes = [node("MaxPool", "x", "p places", kernel_shape=[2, 2], strides=[5, 5], ceil_mode=1)]
    nodes += [node("Cast", "places", "real", to=TensorProto.FLOAT), node("Add", "p real", "y")]
    opened(nodes, {}, 17, x=RNG.standard_normal((2, 3, *size)).astype(np.float32))
