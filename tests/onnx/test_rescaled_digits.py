"""The digits network with rescaled channels: what naive INT8 loses, equalization and the steps after it bring back."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from isobit.placement import QuantConfig
from isobit.plugins import registry
from isobit.quantsim import QuantSim
from isobit.quantsim.checks.quality import output_sqnr
from isobit.techniques import CorrectBias, EqualizeCrossLayers
from isobit.testing.rescaling import folded_with_relu, rescaled
from isobit_onnx.backend import OnnxBackend
from isobit_onnx.reference_networks import build_onnx

FOLDER = Path(__file__).parents[2] / "examples" / "digits"
DATA = np.load(FOLDER / "calibration.npz")["image"][:96]
TEST = np.load(FOLDER / "test.npz")


@pytest.fixture(scope="module")
def model():
    return build_onnx(rescaled(folded_with_relu(registry().open(FOLDER / "model.onnx"), "digits")))


def measured(model, *techniques, weights: str) -> tuple[float, float, float]:
    """Accuracy in points of the float model and of the simulator, and the SQNR of the logits."""
    batch = {"image": TEST["image"]}
    sim = QuantSim.of_backend_model(OnnxBackend().open(model), registry().target("default"), QuantConfig(weights))
    float_outputs = sim.backend_model.run(batch)
    sim.apply(*techniques, data=DATA)
    sim.calibrate(DATA)
    outputs = sim.run(batch)
    points = [100 * float(np.mean(run["logits"].argmax(1) == TEST["label"])) for run in (float_outputs, outputs)]
    return points[0], points[1], output_sqnr([float_outputs], [outputs])


def test_per_channel(model) -> None:
    plain, naive, _ = measured(model, weights="int8")
    _, equalized, _ = measured(model, EqualizeCrossLayers(), weights="int8")
    assert naive < plain - 50  # its activations are rescaled as well
    assert equalized >= plain - 0.5


def test_the_ladder_of_data_free_quantization(model) -> None:
    """Per-tensor weights: naive, + equalization, + absorption, + bias correction, fast and full. No step loses.

    Behind equalization the SQNR is that of the activations' grids with 8 bits. No channel lies so high that to absorb
    its bias would narrow a grid, so absorption changes nothing; fast bias correction is worth a tenth of a decibel,
    of which last bits of other processors may take some.
    """
    rungs = [
        (),
        (EqualizeCrossLayers(absorb_biases=False),),
        (EqualizeCrossLayers(),),
        (EqualizeCrossLayers(), CorrectBias()),
        (EqualizeCrossLayers(), CorrectBias("full")),
    ]
    measurements = [measured(model, *rung, weights="int8 per-tensor") for rung in rungs]
    plain = measurements[0][0]
    assert measurements[0][1] < plain - 50
    assert all(accuracy >= plain - 0.5 and sqnr > 38 for _, accuracy, sqnr in measurements[1:])
    for lower, higher in pairwise(measurements):
        assert higher[1] >= lower[1]
        assert higher[2] >= lower[2] - 0.02
    assert measurements[-1][2] > measurements[1][2] + 0.4
