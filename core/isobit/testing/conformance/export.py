"""Part 5: copies, states and exports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from isobit.backend.checked_model import CheckedModel
from isobit.backend.contract import Backend
from isobit.edits.edit import SetWeights
from isobit.encodings.encoding import Encoding
from isobit.encodings.quant_spec import QuantSpec
from isobit.errors import IsobitError
from isobit.graph.isomorphism import differences
from isobit.graph.sites import Site, Tensor, Weight
from isobit.placement.quant_config import QuantConfig
from isobit.plugins import registry
from isobit.quantsim.quantsim import QuantSim
from isobit.techniques.fold_batch_norms import FoldBatchNorms
from isobit.testing.conformance.base import ConformanceBase, Opened, assert_close, assert_same, weight_names
from isobit.testing.networks import NETWORKS

#: Every network for one target, and for the others those with operations that they treat in a way of their own.
_EXPORTED = [
    *((name, "default") for name in sorted(NETWORKS)),
    *((name, "onnxruntime-cpu") for name in ("conv_net", "inverted_residual", "recurrent", "two_inputs", "upsampler")),
    *((name, "onnxruntime-cpu-transformer") for name in ("attention", "multi_head", "shared_weights")),
]


def quantized(opened: Opened) -> CheckedModel:
    """The model with a quantizer on its input and on every weight, the input's switched off."""
    spec = QuantSpec.parse("int6 per-tensor")
    sites: list[Site] = [Weight(name) for name in weight_names(opened.model.graph)]
    sites.append(Tensor(opened.model.graph.inputs[0]))
    opened.model.set_quantizers({site: Encoding.of(spec, 0.1) for site in sites})
    opened.model.enable([sites[-1]], on=False)
    return opened.model


class ExportConformance(ConformanceBase):
    """What goes out of a model: copies, bytes and ONNX."""

    def test_copy_is_independent(self, differing: Opened) -> None:
        """A copy has the same graph, quantizers and outputs, and edits of one do not reach the other."""
        model, batch = quantized(differing), differing.network.batch(2)
        before = model.run(batch)
        copy = model.copy()
        assert_same(copy.run(batch), before)
        assert dict(copy.encodings()) == dict(model.encodings())
        name = next(name for name in weight_names(copy.graph))
        copy.edit([SetWeights({name: copy.weight(name) * 3})])
        copy.set_quantizers(dict.fromkeys(copy.encodings()))
        assert_same(model.run(batch), before)
        assert len(model.encodings()) > 0

    def test_state_round_trip(self, backend: Backend, differing: Opened) -> None:
        """`restore(state())` is the same model: graph, weights, quantizers, switches, outputs to the last bit."""
        model, batch = quantized(differing), differing.network.batch(2)
        state = model.state()
        assert isinstance(state, bytes)
        restored = CheckedModel.of(backend.restore(state))
        assert differences(model.graph, restored.graph, model.weight, restored.weight) == []
        assert [node.name for node in restored.graph.nodes] == [node.name for node in model.graph.nodes]
        assert dict(restored.encodings()) == dict(model.encodings())
        assert_same(restored.run(batch), model.run(batch))

    def test_bad_state_is_an_error(self, backend: Backend) -> None:
        """Bytes that are no state raise an IsobitError, and run no code."""
        for state in (b"", b"nothing", b"PK\x03\x04 broken"):
            with pytest.raises(IsobitError):
                backend.restore(state)

    def test_float_onnx(self, opened: Opened) -> None:
        """The float model in onnxruntime gives the same outputs, and every tensor and weight has a name in it."""
        onnxruntime = pytest.importorskip("onnxruntime")
        model, batch = opened.model, opened.network.batch(3)
        proto, names = model.to_onnx()
        session = onnxruntime.InferenceSession(proto.SerializeToString())
        outputs = [output.name for output in session.get_outputs()]
        assert_close(dict(zip(outputs, session.run(None, batch), strict=True)), model.run(batch))
        known = {value for node in proto.graph.node for value in (*node.input, *node.output)}
        sites: list[Site] = [Tensor(name) for name in model.graph.tensors]
        sites += [Weight(name) for name in model.graph.weights]
        for site in sites:
            assert names[site].name in known, site

    @pytest.mark.parametrize(("name", "target"), _EXPORTED)
    def test_quantize_and_export(
        self, open_network: Callable[[str], Opened], tmp_path: Path, name: str, target: str
    ) -> None:
        """The whole way: fold, calibrate, export; the file in onnxruntime agrees with the simulator."""
        check_export(open_network(name), target, tmp_path)


def check_export(opened: Opened, target: str, folder: Path) -> None:
    """Quantize a network for a target, and compare what is written into `folder` with the simulator."""
    onnxruntime = pytest.importorskip("onnxruntime")
    sim = QuantSim.of_backend_model(opened.model, registry().target(target), QuantConfig())
    sim.apply(FoldBatchNorms())
    data = [opened.network.batch(4, seed=seed) for seed in range(4)]
    sim.calibrate(data, "mse")  # which scheme is best is not the question
    paths = sim.export(folder)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(paths["model"]), options)
    for batch in data:
        simulated, plain = sim.run(batch), sim.run_float(batch)
        for output, found in zip(session.get_outputs(), session.run(None, batch), strict=True):
            expected = simulated[output.name]
            assert decibels(expected, found) >= decibels(plain[output.name], expected) + 10, output.name


def decibels(signal: np.ndarray, other: np.ndarray) -> float:
    """Signal-to-noise ratio of `other` as an approximation of `signal`, at most 120 dB."""
    noise = float(np.square(signal.astype(np.float64) - other).sum())
    power = float(np.square(signal.astype(np.float64)).sum())
    return 120.0 if noise <= power * 1e-12 else 10 * float(np.log10(power / noise))
