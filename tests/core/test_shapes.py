"""Shape inference of the ops that edits touch, against shapes that NumPy computes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from isobit.graph import Node
from isobit.graph.shape_inference import ShapeError, infer
from isobit.testing.interpreter import compute


def node(op: str, inputs: int = 1, **attributes: Any) -> Node:
    return Node("n", op, tuple(f"i{i}" for i in range(inputs)), ("o",), attributes)


@given(
    op=st.sampled_from(["Conv", "ConvTranspose", "MaxPool"]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
)
def test_windows(op: str, size: Any, kernel: Any, stride: int, dilation: int, pads: Any) -> None:
    dilation = 1 if op == "ConvTranspose" else dilation
    attributes = {
        "strides": (stride,) * 2,
        "dilations": (dilation,) * 2,
        "pads": pads,
        "group": 2,
        "kernel_shape": kernel,
    }
    window = node(op, 1 if op == "MaxPool" else 2, **attributes)
    x, weight = np.zeros((2, 4, *size)), np.zeros((6, 2, *kernel))
    operands = [x] if op == "MaxPool" else [x, weight]
    shape = infer(window, [("N", 4, *size), weight.shape], {} if op == "MaxPool" else {1: weight.shape})
    assert shape is not None
    assume(all(isinstance(n, int) and n > 0 for n in shape[1:]))
    assert shape == ("N", *compute(window, operands).shape[1:])


def test_windows_of_unknown_size() -> None:
    conv = node("Conv", 2, group=1)
    assert infer(conv, [("N", 3, "H", None), (5, 3, 3, 3)], {1: (5, 3, 3, 3)}) == ("N", 5, None, None)
    same = node("Conv", 2, group=1, auto_pad="SAME_UPPER")
    assert infer(same, [("N", 3, 8, 8), (5, 3, 3, 3)], {1: (5, 3, 3, 3)}) == ("N", 5, None, None)


@given(
    op=st.sampled_from(["MaxPool", "AveragePool"]),
    size=st.integers(1, 9),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 2),
    pads=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    ceil_mode=st.integers(0, 1),
)
def test_pooling_counts_the_windows_that_begin_before_the_end(
    op: str, size: int, kernel: int, stride: int, dilation: int, pads: Any, ceil_mode: int
) -> None:
    extent = (kernel - 1) * dilation + 1
    assume(extent <= size + sum(pads) and max(pads) < max(kernel, 2) and size + pads[0] > 0)
    settings = {"kernel_shape": (kernel,), "strides": (stride,), "dilations": (dilation,), "pads": pads}
    begins = range(0, size + sum(pads), stride)
    whole = [start for start in begins if start + extent <= size + sum(pads)]
    partial = [start for start in begins if start not in whole and start - stride + extent < size + sum(pads)][:1]
    partial = [start for start in partial if start < size + pads[0]] if ceil_mode else []
    count = len(whole) + len(partial)
    assert infer(node(op, ceil_mode=ceil_mode, **settings), [("N", 4, size)], {}) == ("N", 4, count)


@pytest.mark.parametrize(("ceil_mode", "size"), [(0, 2), (1, 3)])
def test_pooling_may_round_up(ceil_mode: int, size: int) -> None:
    pool = node("AveragePool", kernel_shape=(2,), strides=(2,), ceil_mode=ceil_mode)
    assert infer(pool, [("N", 3, 5)], {}) == ("N", 3, size)


def test_output_padding_lengthens() -> None:
    conv = node("ConvTranspose", 2, strides=(2,), output_padding=(1,))
    assert infer(conv, [("N", 3, 5), (4, 3, 3)], {1: (4, 3, 3)}) == ("N", 4, 12)


def test_linear() -> None:
    linear = node("Linear", 3)
    assert infer(linear, [("N", 5, 3), (4, 3), (4,)], {1: (4, 3), 2: (4,)}) == ("N", 5, 4)
    assert infer(linear, [("N", None), (4, 3)], {1: (4, 3)}) == ("N", 4)
    assert infer(linear, [("N", 3), ("N", 4)], {}) is None


@pytest.mark.parametrize(
    "shapes",
    [((2, 3), (3,)), ((2, 1, 4), (3, 1)), ((), (2,)), ((1,), (5, 5)), ((2, 3), (2, 3), (1, 3)), ((7,), ())],
)
def test_broadcasting_follows_numpy(shapes: tuple[tuple[int, ...], ...]) -> None:
    for order in itertools.permutations(shapes):
        assert infer(node("Add", len(order)), order, {}) == np.broadcast_shapes(*order)


def test_broadcasting_of_symbols() -> None:
    assert infer(node("Add", 2), [("N", 3), ("N", 3)], {}) == ("N", 3)
    assert infer(node("Add", 2), [("N", 1), (1, 3)], {}) == ("N", 3)
    assert infer(node("Add", 2), [("N", 3), None], {}) is None


@pytest.mark.parametrize(
    ("rule_node", "source", "expected"),
    [
        (node("Relu"), ("N", 3), ("N", 3)),
        (node("GlobalAveragePool", keepdims=1), ("N", 3, 8, 8), ("N", 3, 1, 1)),
        (node("GlobalAveragePool", keepdims=0), ("N", 3, 8, 8), ("N", 3)),
        (node("Transpose", perm=(0, 2, 1)), ("N", 3, 8), ("N", 8, 3)),
        (node("Reshape", shape=(-1, 12)), ("N", 3, 4), ("N", 12)),
        (node("Reshape", shape=(-1, 3, -1)), ("N", 12), ("N", 3, None)),
        (node("Reshape", shape=(-1, 5, 8)), (None, 8), (None, 5, 8)),
        (node("Mystery"), ("N", 3), None),
        (node("Relu"), None, None),
    ],
)
def test_other_rules(rule_node: Node, source: Any, expected: Any) -> None:
    assert infer(rule_node, [source], {}) == expected


def test_concat() -> None:
    concat = node("Concat", 2, axis=1)
    assert infer(concat, [("N", 3, 8), ("N", 4, 8)], {}) == ("N", 7, 8)
    assert infer(concat, [("N", 3, 8), ("N", "C", 8)], {}) == ("N", None, 8)
    assert infer(concat, [("N", 3, 8), None], {}) is None


@pytest.mark.parametrize(
    ("misfit", "shapes", "constants", "message"),
    [
        (node("Conv", 2, group=2), [("N", 3, 8), (4, 2, 3)], {1: (4, 2, 3)}, "with group 2 reads 4 channels, not 3"),
        (node("Conv", 2, group=2), [("N", 4, 8), (3, 2, 3)], {1: (3, 2, 3)}, "3 output channels do not divide into 2"),
        (node("Conv", 3), [("N", 4, 8), (3, 4, 3), (4,)], {1: (3, 4, 3), 2: (4,)}, "does not fit 3 output channels"),
        (node("Linear", 2), [("N", 3), (4, 5)], {1: (4, 5)}, "reads 5 features, not 3"),
        (node("Linear", 3), [("N", 5), (4, 5), (5,)], {1: (4, 5), 2: (5,)}, "does not fit 4 outputs"),
        (node("BatchNormalization", 2), [("N", 3, 8), (4,)], {1: (4,)}, "does not fit 3 channels"),
        (node("PRelu", 2), [("N", 3, 8), (2, 1)], {1: (2, 1)}, "does not fit 3 channels"),
        (node("Add", 2), [("N", 3), (4,)], {1: (4,)}, "do not broadcast"),
        (node("Reshape", shape=(-1, 10)), [("N", 3, 4)], {}, "12 values a sample do not reshape to 10"),
    ],
)
def test_what_does_not_fit(misfit: Node, shapes: Any, constants: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        infer(misfit, shapes, constants)


@pytest.mark.parametrize("slope", [(1,), (), (3, 1, 1)])
def test_a_slope_may_be_shared(slope: tuple[int, ...]) -> None:
    assert infer(node("PRelu", 2), [("N", 3, 8, 8), slope], {1: slope}) == ("N", 3, 8, 8)
