"""Graphs drawn by hand for tests of placement, and the formats of a plan as texts."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from registries import rounds_all
from sketch import Sketch

from isobit.canonical import canonicalize
from isobit.graph import Graph, Weight
from isobit.placement import Plan
from isobit.targets import Target

IMAGE = ("N", 4, 6, 6)
TARGETS: Mapping[str, Target] = {name: rounds_all(name) for name in ("default", "onnxruntime-cpu")}
on_each_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
DEFAULT, ORT = TARGETS["default"], TARGETS["onnxruntime-cpu"]

ACTIVATION = "uint8 asymmetric per-tensor"
WEIGHT = "int8 symmetric per-channel"
BIAS = "int32 symmetric per-channel"


def formats(plan: Plan) -> dict[str, str]:
    """Formats by site; ``(copy)`` marks what the simulator does not round again."""
    return {
        f"{'w:' if isinstance(site, Weight) else ''}{site}": f"{p.spec}{'' if p.simulated else ' (copy)'}"
        for site, p in plan.placements.items()
    }


def conv(sketch: Sketch, x: str, name: str, out: int = 4, source: int = 4, *, bias: bool = False) -> str:
    operands = [sketch.random(f"{name}.w", out, source, 1, 1), *([sketch.random(f"{name}.b", out)] if bias else [])]
    return sketch.node("Conv", x, *operands, name=name, shape=("N", out, 6, 6))


def relu(sketch: Sketch, x: str, name: str) -> str:
    return sketch.node("Relu", x, name=name, shape=IMAGE)


def drawn(sketch: Sketch, *outputs: str) -> Graph:
    return canonicalize(sketch.graph(*outputs))


def small() -> Graph:
    """Two convolutions, a Relu and a pooling between them."""
    sketch = Sketch()
    y = relu(sketch, conv(sketch, sketch.input("x", *IMAGE), "block.conv", bias=True), "block.relu")
    y = sketch.node("MaxPool", y, name="pool", shape=("N", 4, 3, 3), kernel_shape=(2, 2), strides=(2, 2))
    return drawn(sketch, sketch.node("Conv", y, sketch.random("head.w", 4, 4, 1, 1), name="head", shape=("N", 4, 3, 3)))
