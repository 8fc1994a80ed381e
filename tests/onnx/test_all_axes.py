"""Pad and Resize that name some axes alone load and run in every session, beside layers that run in another layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from small_models import constant, model, node, opened_alike, value

import isobit

RNG = np.random.default_rng(5)

Form = tuple[str, str, Mapping[str, Any], int]
FORMS: dict[str, Form] = {
    "pads of space": ("Pad", "r widths - space", {}, 18),
    "pads from behind": ("Pad", "r widths - last", {"mode": "reflect"}, 18),
    "pads that wrap": ("Pad", "r widths - last", {"mode": "wrap"}, 19),
    "computed pads": ("Pad", "r computed - space", {}, 18),
    "scales": ("Resize", "r - scales", {"axes": [2, 3], "mode": "linear"}, 18),
    "scales, antialiased": ("Resize", "r - scales", {"axes": [2, 3], "mode": "linear", "antialias": 1}, 18),
    "sizes": ("Resize", "r - - sizes", {"axes": [-2, -1], "mode": "nearest"}, 18),
    "sizes, symmetric": (
        "Resize",
        "r - - sizes",
        {"axes": [2, 3], "mode": "linear", "coordinate_transformation_mode": "half_pixel_symmetric"},
        19,
    ),
    "sizes in proportion": (
        "Resize",
        "r - - sizes",
        {"axes": [3, 2], "mode": "linear", "keep_aspect_ratio_policy": "not_larger"},
        18,
    ),
    "sizes in proportion at least": (
        "Resize",
        "r - - sizes",
        {"axes": [2, 3], "mode": "cubic", "keep_aspect_ratio_policy": "not_smaller"},
        18,
    ),
    "a region": (
        "Resize",
        "r region - sizes",
        {"axes": [2, 3], "mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"},
        18,
    ),
}


def network(form: Form) -> onnx.ModelProto:
    op, inputs, settings, opset = form
    weights = {name: RNG.standard_normal(shape).astype(np.float32) / 4 for name, shape in SHAPES.items()}
    tensors = {
        "widths": constant("widths", [1, 2, 1, 2], np.int64), "space": constant("space", [2, 3], np.int64),
        "last": constant("last", [-2, -1], np.int64), "sizes": constant("sizes", [10, 12], np.int64),
        "scales": np.array([0.5, 0.75], np.float32), "region": np.array([0.1, 0, 0.9, 1], np.float32),
        "ones": constant("ones", [1, 1], np.int64),
    }  # fmt: skip
    nodes = [
        node("Conv", "x w b", "c", pads=[1] * 4),
        node("Relu", "c", "r"),
        *([node("Shape", "x", "s", start=2), node("Div", "s s", "d"), node("Concat", "d ones", "computed", axis=0)]
          if "computed" in inputs else []),
        node(op, inputs, "m", **settings),
        node("Conv", "m v", "y", pads=[1] * 4),
    ]  # fmt: skip
    used = {name for n in nodes for name in n.input}
    held = {name: array for name, array in (weights | tensors).items() if name in used}
    return model(nodes, [value("x", ["n", 3, 8, 8])], [value("y", ["n", 4, None, None])], held, opset)


SHAPES: Mapping[str, Sequence[int]] = {"w": (8, 3, 3, 3), "b": (8,), "v": (4, 8, 3, 3)}


@pytest.mark.parametrize("activations", ["uint8", "int8"])
@pytest.mark.parametrize("form", FORMS)
def test_the_file_runs_as_it_is_simulated(form: str, activations: str, tmp_path: Path) -> None:
    proto = network(FORMS[form])
    x = RNG.standard_normal((2, 3, 8, 8)).astype(np.float32)
    opened_alike(proto, {"x": x})
    sim = isobit.quantize(proto, x, method="minmax", recipe="basic", activations=activations, progress=False)
    assert sim.report.counts["weight"] == 2
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    path = str(sim.export(tmp_path / "out")["model"])
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    expected, result = sim.run({"x": x})["y"], session.run(None, {"x": x})[0]
    assert np.mean((result - expected) ** 2) < 1e-4 * np.mean(expected**2)
