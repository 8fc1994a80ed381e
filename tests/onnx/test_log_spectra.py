"""Spectra in decibels, as networks for speech begin with them: quiet parts are looked at as much as loud ones."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from small_models import constant, model, node, runtime, value

import isobit

FRAME, HOP, BANDS = 64, 32, 12


def log_spectrum(root: str) -> onnx.ModelProto:
    """Masked samples, a Fourier transform by a convolution, bands of power or magnitude, a logarithm.

    Magnitudes are roots of powers, or norms whose bands stand on the left of the product.
    """
    bins, times = np.arange(FRAME // 2 + 1)[:, None], np.arange(FRAME)
    phase, window = 2 * np.pi * bins * times / FRAME, np.hanning(FRAME)
    filters = np.concatenate([np.cos(phase) * window, -np.sin(phase) * window])[:, None]
    centres = np.linspace(0, FRAME // 2, BANDS)
    bands = np.maximum(1 - np.abs(np.arange(FRAME // 2 + 1)[:, None] - centres) / 3, 0)
    nodes = [
        node("Shape", "x", "shape", start=1),
        node("Squeeze", "shape", "size"),
        node("Range", "zero size one", "place"),
        node("Less", "place lengths", "mask"),
        node("Where", "mask x silence", "masked"),
        node("Unsqueeze", "masked axis", "channel"),
        node("Conv", "channel filters", "parts", strides=[HOP]),
        node("Reshape", "parts apart", "complex"),
        node("ReduceL2" if root == "norm" else "ReduceSumSquare", "complex", "power", axes=[1], keepdims=0),
        node("Transpose", "power", "rows", perm=[0, 2, 1]),
        *([node("Sqrt", "rows", "magnitude")] if root == "root" else []),
        *(
            [node("MatMul", "turned power", "columns"), node("Transpose", "columns", "mel", perm=[0, 2, 1])]
            if root == "norm"
            else [node("MatMul", ("magnitude" if root else "rows") + " bands", "mel")]
        ),
        node("Add", "mel least", "above"),
        node("Log", "above", "y"),
    ]
    constants = {
        "filters": filters,
        **({"turned": bands.T} if root == "norm" else {"bands": bands}),
        "silence": constant("silence", 0.0, np.float32),
        "least": constant("least", 1e-7, np.float32),
        "zero": constant("zero", 0, np.int64),
        "one": constant("one", 1, np.int64),
        "axis": constant("axis", [1], np.int64),
        "apart": constant("apart", [0, 2, FRAME // 2 + 1, -1], np.int64),
    }
    inputs = [value("x", ["n", "samples"]), value("lengths", ["n", 1], onnx.TensorProto.INT64)]
    return model(nodes, inputs, [value("y", ["n", "frames", BANDS])], constants)


def tones(seed: int) -> dict[str, NDArray[np.generic]]:
    """Loud tones that become quiet, down to a thousandth."""
    rng = np.random.default_rng(seed)
    time = np.arange(2048)
    wave = np.sin(rng.uniform(0.1, 2.5, (16, 1)) * time) + 0.1 * rng.standard_normal((16, 2048))
    return {
        "x": (wave * 10.0 ** (-3 * time / 2048)).astype(np.float32),
        "lengths": rng.integers(1500, 2048, (16, 1)),
    }


@pytest.mark.parametrize("root", ["", "root", "norm"], ids=["power", "magnitude", "norm"])
def test_quiet_parts_count_as_much_as_loud_ones(root: str) -> None:
    proto, new = log_spectrum(root), tones(1)
    sim = isobit.quantize(proto, tones(0), progress=False)
    exact, rounded = runtime(proto, new)["y"], sim.run(new)["y"]
    error = np.mean((rounded - exact) ** 2)
    assert 10 * np.log10(np.var(exact) / error) > 40
    assert sim.report.coverage.weights > 0.99
