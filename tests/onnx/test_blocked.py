"""Sessions that keep quantizers and reductions in onnxruntime's blocked layout give the bits of plain ones."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from isobit.backend import Request
from isobit.encoding import Encoding
from isobit.quant_spec import QuantSpec
from isobit.sites import Tensor
from isobit.statistics import Histogram, MinMax
from isobit.testing.networks import Network, NetworkBuilder
from isobit_onnx.backend import OnnxBackend
from isobit_onnx.model import OnnxModel
from isobit_onnx.reference_networks import build_onnx
from isobit_onnx.run import session
from isobit_onnx.run.blocked_layout import DOMAIN, block_size, keep_blocked, optimise
from isobit_onnx.run.session import Session

pytestmark = pytest.mark.skipif(block_size() == 0, reason="onnxruntime has no blocked layout on this machine")


def network() -> Network:
    """Convolutions of full and of filled-up blocks, with a residual, a pool, ReLU6 and a large output."""
    b = NetworkBuilder("blocks")
    x = b.input("image", 3, 48, 48)
    x = b.op("Relu", "relu", b.conv("stem", x, 16, 3))
    y = b.relu6("wide_relu", b.conv("wide", x, 48, 1))
    y = b.conv("back", y, 16, 3)
    x = b.op("Add", "add", x, y)
    x = b.op(
        "MaxPool", "pool", x, kernel_shape=(2, 2), strides=(2, 2), dilations=(1, 1), pads=(0, 0, 0, 0), ceil_mode=0
    )
    odd = b.op("Sigmoid", "gate", b.conv("odd", x, 20, 3))
    b.output("features", b.conv("last", odd, 18, 1))
    b.output("also", odd)
    return b.build()


NAMES = ("image", "relu", "wide_relu", "back", "add", "odd", "gate")


def quantized(formats: list[str]) -> OnnxModel:
    model = OnnxBackend().open(build_onnx(network()))
    encodings = {}
    for number, name in enumerate(NAMES):
        spec = QuantSpec.parse(formats[number % len(formats)])
        zero = 0 if spec.symmetric else (spec.q_min + spec.q_max) // 2
        encodings[Tensor(name)] = Encoding(spec, np.float32(0.037 * 255 / (spec.q_max - spec.q_min)), np.int32(zero))
    model.set_quantizers(encodings)
    return model


@pytest.mark.parametrize(
    "formats", [["uint8"], ["int8"], ["int16"], ["uint5", "int12", "uint8"], ["uint8", "bfloat16"]]
)
def test_simulated_outputs_are_the_same_bits(formats):
    simulator = quantized(formats).simulator()
    plain, blocked = Session(simulator, blocked_after=100), Session(simulator, blocked_after=0)
    assert blocked.is_blocked
    assert not plain.is_blocked
    for size in (1, 3):
        batch = network().batch(size, seed=size)
        expected, outputs = plain.run(batch), blocked.run(batch)
        assert list(expected) == list(outputs)
        for name in expected:
            np.testing.assert_array_equal(outputs[name].view(np.uint32), expected[name].view(np.uint32), err_msg=name)


def test_no_tensor_is_reordered_around_a_quantizer(tmp_path):
    """Otherwise nothing above is tested, and the runtime's optimiser has changed."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    path = optimise(quantized(["uint8"]).native.SerializeToString(), options, tmp_path)
    model = onnx.load(path, load_external_data=False)
    before = [node.op_type for node in model.graph.node if node.domain == DOMAIN]
    assert keep_blocked(model)
    after = [node.op_type for node in model.graph.node if node.domain == DOMAIN]
    assert before.count("ReorderInput") >= 4
    assert after.count("ReorderInput") <= 1  # behind the pool, which runs plain
    assert after.count("ReorderOutput") <= 4


def test_a_session_changes_its_layout_in_the_middle_of_the_data(monkeypatch):
    model = quantized(["uint8"])
    results = []
    monkeypatch.setattr(session, "keep_blocked", lambda *args: results.append(keep_blocked(*args)) or results[-1])
    batch = network().batch(2)
    outputs = [model.run(batch)["features"] for _ in range(7)]
    assert results == [True]
    assert [opened.is_blocked for opened in model._sessions.values()] == [True]
    for other in outputs[1:]:
        np.testing.assert_array_equal(other, outputs[0])


@pytest.mark.parametrize("stage", ["before", "after"])
def test_statistics_are_the_same(stage, monkeypatch):
    """Counts, bounds and their order, for tensors that are sampled and tensors that are counted whole."""
    assert (Histogram().limit or 0) < 48 * 48 * 16

    def observed():
        model = quantized(["uint8"])
        histograms = {name: Histogram() for name in NAMES} | {name: MinMax() for name in ("relu@", "gate@")}
        requests = [Request(Tensor(name.rstrip("@")), h, stage) for name, h in histograms.items()]
        model.observe([network().batch(size, seed=size) for size in (2, 3)], requests)
        return {name: histogram.arrays() for name, histogram in histograms.items()}

    blocked = observed()
    monkeypatch.setattr(session, "block_size", lambda: 0)
    plain = observed()
    for name, arrays in plain.items():
        for key, array in arrays.items():
            np.testing.assert_array_equal(blocked[name][key], array, err_msg=f"{name} {key}")
