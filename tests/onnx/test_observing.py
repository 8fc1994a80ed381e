"""Observation inside the graph: what is not computed there must be known all the same."""

from __future__ import annotations

import numpy as np
import pytest

from isobit.backend import Request
from isobit.sites import Tensor
from isobit.statistics import Histogram
from isobit.testing.networks import NetworkBuilder
from isobit_onnx.backend import OnnxBackend
from isobit_onnx.building import build_onnx
from isobit_onnx.observing import ObservingSession


@pytest.mark.parametrize("op", ["relu", "relu6"])
@pytest.mark.parametrize("shift", [(0, 0, 0), (9, 0, 0), (0, 9, -9), (9, 9, 9)])
def test_the_minimum_behind_a_relu_is_exact_with_and_without_zeros(op, shift, monkeypatch):
    b = NetworkBuilder("rectified")
    x = b.input("image", 8, 40, 40)
    b.output("y", b.relu6("relu", x) if op == "relu6" else b.op("Relu", "relu", x))
    model = OnnxBackend().open(build_onnx(b.build()))
    assert (Histogram().limit or 0) < 8 * 40 * 40, "only a sample of the values leaves the graph"
    made = []
    opened = ObservingSession._open
    monkeypatch.setattr(
        ObservingSession, "_open", lambda self, batch, **how: (made.append(how), opened(self, batch, **how))
    )
    rng = np.random.default_rng(5)
    batches = [{"image": (rng.standard_normal((2, 8, 40, 40)) / 3 + by).astype(np.float32)} for by in shift]
    histogram = Histogram()
    model.observe(batches, [Request(Tensor("relu"), histogram)])
    ends = [np.clip(batch["image"], 0, 6 if op == "relu6" else None) for batch in batches]
    np.testing.assert_array_equal(histogram.batch_bounds.arrays()["batches"][:, 0], [end.min() for end in ends])
    np.testing.assert_array_equal(histogram.batch_bounds.arrays()["batches"][:, 1], [end.max() for end in ends])
    assert histogram.minimum == min(end.min() for end in ends)
    assert len(made) == 1 + (9 in shift), "one session, and a second one from where zeros are missing"
