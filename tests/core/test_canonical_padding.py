"""Padding in front of a convolution or of a maximum is the layer's own."""

from __future__ import annotations

import numpy as np
import pytest
from canonical_form import IMAGE, canonical, only
from sketch import Sketch, ops

CONV = {"kernel_shape": (3, 3), "strides": (2, 2), "dilations": (1, 1), "pads": (1, 0, 0, 0), "group": 1}
SPACE = (0, 0, 0, 1, 0, 0, 2, 1)


def sketched(pads: tuple[int, ...] = SPACE, **settings: object) -> tuple[Sketch, str]:
    sketch = Sketch()
    pad = sketch.node("Pad", sketch.input("x", *IMAGE), name="pad", shape=("N", 3, 10, 10), pads=pads, **settings)
    return sketch, sketch.node("Conv", pad, sketch.random("w", 4, 3, 3, 3), name="conv", shape=("N", 4, 5, 4), **CONV)


def test_pads_add_up() -> None:
    sketch, conv = sketched(mode="constant", value=0.0)
    node = only(canonical(sketch, conv))
    assert (node.op, node.inputs, node.parts) == ("Conv", ("x", "w"), ("pad", "conv"))
    assert node.attributes["pads"] == (1, 1, 2, 1)


def test_pads_given_as_a_constant_input() -> None:
    sketch = Sketch()
    pads = sketch.weight("pads", SPACE, np.int64)
    pad = sketch.node("Pad", sketch.input("x", *IMAGE), pads, name="pad", shape=("N", 3, 10, 10))
    conv = sketch.node("Conv", pad, sketch.random("w", 4, 3, 3, 3), name="conv", shape=("N", 4, 5, 4), **CONV)
    assert only(canonical(sketch, conv)).attributes["pads"] == (1, 1, 2, 1)


@pytest.mark.parametrize(
    "settings",
    [
        {"value": 1.0},
        {"mode": "reflect"},
        {"pads": (0, 1, 0, 0, 0, 0, 0, 0)},
        {"pads": (0, 0, -1, 0, 0, 0, 0, 0)},
    ],
)
def test_other_padding_stays(settings: dict) -> None:
    sketch, conv = sketched(**settings)
    assert ops(canonical(sketch, conv)) == ["Pad", "Conv"]


def test_padding_with_another_reader_stays() -> None:
    sketch, conv = sketched()
    relu = sketch.node("Relu", "pad", name="relu", shape=("N", 3, 10, 10))
    assert ops(canonical(sketch, conv, relu)) == ["Pad", "Conv", "Relu"]
    sketch, conv = sketched()
    assert ops(canonical(sketch, conv, "pad")) == ["Pad", "Conv"]


POOL = {"kernel_shape": (3, 3), "strides": (2, 2)}


def pooled(value: float, **settings: object) -> tuple[Sketch, str]:
    sketch = Sketch()
    pad = sketch.node(
        "Pad", sketch.input("x", *IMAGE), name="pad", shape=("N", 3, 10, 10), pads=SPACE, mode="constant", value=value
    )
    size = 5 if "pads" in settings or settings.get("auto_pad") or "kernel_shape" in settings else 4
    width = 4 if "pads" in settings else size
    return sketch, sketch.node("MaxPool", pad, name="pool", shape=("N", 3, size, width), **(POOL | settings))


@pytest.mark.parametrize("value", [-np.inf, float(np.finfo(np.float32).min), float(np.finfo(np.float16).min)])
@pytest.mark.parametrize("own", [None, (1, 0, 0, 0)])
def test_what_never_is_a_maximum_is_its_padding(value: float, own: tuple[int, ...] | None) -> None:
    sketch, pool = pooled(value, **({} if own is None else {"pads": own}))
    node = only(canonical(sketch, pool))
    assert (node.op, node.inputs, node.parts) == ("MaxPool", ("x",), ("pad", "pool"))
    assert node.attributes["pads"] == ((0, 1, 2, 1) if own is None else (1, 1, 2, 1))


@pytest.mark.parametrize(
    ("value", "settings"),
    [
        (0.0, {}),
        (-1.0, {}),
        (-np.inf, {"ceil_mode": 1, "kernel_shape": (2, 2)}),
        (-np.inf, {"auto_pad": "SAME_UPPER"}),
        (-np.inf, {"kernel_shape": (2, 2)}),  # a window of what was added alone
    ],
)
def test_other_padding_of_a_maximum_stays(value: float, settings: dict) -> None:
    sketch, pool = pooled(value, **settings)
    assert ops(canonical(sketch, pool)) == ["Pad", "MaxPool"]
