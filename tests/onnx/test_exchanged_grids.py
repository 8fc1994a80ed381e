"""A simulator whose grids were exchanged computes what one that is written anew does, whatever the formats."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import isobit
from isobit.edits import SetWeights
from isobit.encodings import Encoding
from isobit.graph import Tensor
from isobit.testing.networks import NETWORKS
from isobit_onnx.model import OnnxModel
from isobit_onnx.reference_networks import build_onnx
from isobit_onnx.run import session
from isobit_onnx.run.session import Session
from isobit_onnx.run.simulator import Simulator

FORMATS = [
    {},
    {"weights": "int4 block=4", "activations": "int16"},
    {"weights": "int8 per-tensor", "activations": "int5 symmetric"},  # bounds of a Clip as well
    {"weights": "float8e4m3", "activations": "float8e4m3"},
    {"weights": "int8 asymmetric", "activations": "int8 symmetric"},
]


def _simulator(name: str, formats: dict[str, Any]) -> isobit.QuantSim:
    return isobit.QuantSim(build_onnx(NETWORKS[name]()), target="default", **formats)


@pytest.mark.parametrize(
    ("name", "formats"), [*(("conv_net", chosen) for chosen in FORMATS), ("residual", {})], ids=str
)
def test_exchanged_grids_are_those_of_a_model_written_anew(name: str, formats: dict[str, Any]) -> None:
    network = NETWORKS[name]()
    data = [network.batch(4, seed) for seed in range(2)]
    sim = _simulator(name, formats)
    sim.calibrate(data)
    for method in ("minmax", "percentile=90"):
        sim.recalibrate(method)
        fresh = _simulator(name, formats)
        fresh.load_encodings(dict(sim.encodings))
        expected = fresh.run(data[0])
        for output, values in sim.run(data[0]).items():
            np.testing.assert_array_equal(values, expected[output])


def test_only_what_differs_is_written_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[object] = []
    write = OnnxModel._written
    monkeypatch.setattr(OnnxModel, "_written", lambda self, e: (e and written.append(e)) or write(self, e))
    network = NETWORKS["conv_net"]()
    data = [network.batch(4, seed) for seed in range(2)]
    sim = _simulator("conv_net", {})
    sim.calibrate(data)
    first = sim.run(data[0])
    assert len(written) == 1
    sim.recalibrate("percentile=90")
    other = sim.run(data[0])
    assert len(written) == 1
    assert any(not np.array_equal(first[name], other[name]) for name in first)
    sim.backend_model.set_quantizers({next(iter(sim.backend_model.encodings())): None})  # another form
    sim.run(data[0])
    assert len(written) == 2


def test_grids_of_another_form_are_not_taken_and_change_nothing() -> None:
    network = NETWORKS["conv_net"]()
    sims = [_simulator("conv_net", formats) for formats in ({}, {"activations": "int16"})]
    for sim in sims:
        sim.calibrate([network.batch(4)])
        sim.run(network.batch(4))
    simulators = [sim.backend_model.inner._simulator for sim in sims]
    assert all(isinstance(simulator, Simulator) for simulator in simulators)
    before = simulators[0].proto.SerializeToString()
    assert not simulators[0].take(sims[1].backend_model.encodings())
    assert simulators[0].proto.SerializeToString() == before
    assert simulators[0].take(sims[0].backend_model.encodings())


def test_grids_of_blocks_are_taken_too() -> None:
    """They have as many axes as the tensor: no part of an input of one axis."""
    x = np.random.default_rng(0).normal(size=(3, 6, 4)).astype(np.float32)
    parsed = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21]> g (float[3,6,4] x) => (float[3,6,4] y) { y = Neg (x) }'
    )
    model = isobit.QuantSim(parsed).backend_model
    for step in (0.02, 0.05):
        scales = np.float32(step) * np.arange(1, 37, dtype=np.float32).reshape(3, 3, 4)
        model.set_quantizers({Tensor("x"): Encoding.of("uint8 block=2", scales, np.full((3, 3, 4), 128), axis=1)})
        each = scales.repeat(2, axis=1)
        levels = np.clip(np.rint(x / each) + 128, 0, 255) - 128
        np.testing.assert_allclose(model.run({"x": x})["y"], -levels * each, rtol=1e-6)


def _moved(encoding: Encoding, rng: np.random.Generator) -> Encoding:
    spec, zero = encoding.spec, encoding.zero_point
    if spec.is_integer and not spec.symmetric:
        zero = np.clip(zero + rng.integers(-3, 4), spec.q_min, spec.q_max)
    return Encoding(spec, encoding.scale * np.float32(rng.uniform(0.7, 1.4)), zero, encoding.axis)


@pytest.mark.parametrize("formats", FORMATS[:3], ids=str)
@pytest.mark.parametrize("cost", [0.0, 1e9])
def test_whatever_was_changed_before_a_run_is_in_it(
    formats: dict[str, Any], cost: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grids moved, quantizers switched, weights edited, in turn: a copy, which has no session yet, agrees."""
    monkeypatch.setattr(session, "BLOCKED_COST", cost)
    network, rng = NETWORKS["conv_net"](), np.random.default_rng(0)
    batch = network.batch(2)
    sim = _simulator("conv_net", formats)
    sim.calibrate([batch], "minmax")
    checked, model = sim.backend_model, sim.backend_model.inner
    for change in rng.permutation([0, 0, 0, 1, 1, 2, 2, 3, 4, 4]):
        sites = list(model.encodings())
        some = [site for site in sites if rng.random() < 0.4]
        if change in (0, 4):  # of activations alone, or of weights as well
            taken = [site for site in some if change == 4 or isinstance(site, Tensor)]
            checked.set_quantizers({site: _moved(model.encodings()[site], rng) for site in taken})
        elif change == 1:
            checked.enable(some, on=bool(rng.integers(2)))
        elif change == 2:
            name = next(n for n in checked.graph.weights if checked.weight(n).ndim > 1)
            checked.edit([SetWeights({name: checked.weight(name) * np.float32(1.1)})])
        else:
            checked.set_quantizers({sites[0]: None})
        fresh = model.copy()
        for _ in range(2):  # the second perhaps in another layout
            expected = fresh.run(batch)
            for output, values in model.run(batch).items():
                np.testing.assert_array_equal(values, expected[output])


@pytest.mark.parametrize("output", ["logits", "probabilities"])
def test_schemes_are_compared_in_one_session(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their grids are inputs of it; the values of a tensor before the last node, which observing tells, are so too."""
    network = NETWORKS["conv_net"]()
    data = [network.batch(4, seed) for seed in range(2)]
    proto = build_onnx(network)
    if output == "probabilities":
        name = proto.graph.output[0].name
        proto.graph.node.append(onnx.helper.make_node("Softmax", [name], ["probabilities"]))
        proto.graph.output[0].name = "probabilities"
    sim = isobit.QuantSim(proto, target="default")
    opened: list[bool] = []
    open_ = Session._open

    def counted(self: Session, model: ir.Model, *rest: Any) -> Any:
        opened.append(any(node.op_type == "QuantizeLinear" for node in model.graph))
        return open_(self, model, *rest)

    monkeypatch.setattr(Session, "_open", counted)
    sim.calibrate(data, "auto")
    text = sim.calibration or ""
    assert len(set(re.findall(r"[a-z] (-?[0-9.]+)", text))) > 2  # schemes that differ
    assert opened.count(True) == 1
