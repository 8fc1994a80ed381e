"""Part 7: the front door, and simulators that are saved and put on the float model again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from isobit.backend.contract import Backend
from isobit.encodings.encoding import Encoding
from isobit.errors import IsobitError
from isobit.graph.sites import Tensor
from isobit.layer_dumps.dump import dump
from isobit.placement.quant_config import QuantConfig
from isobit.plugins import registry
from isobit.quantsim.load import load
from isobit.quantsim.quantsim import QuantSim
from isobit.statistics.observer import Request
from isobit.techniques.context import TechniqueContext
from isobit.techniques.correct_bias import CorrectBias
from isobit.techniques.fold_batch_norms import FoldBatchNorms
from isobit.testing import interpreter
from isobit.testing.collecting import Collect
from isobit.testing.conformance.base import Build, ConformanceBase, Opened, assert_same
from isobit.testing.networks import NETWORKS


class FrontDoorConformance(ConformanceBase):
    """Who the backend is, what it opens, and what it answers to what it does not."""

    def test_says_who_it_is(self, backend: Backend) -> None:
        """Names that users type and read, without the framework being imported for them."""
        assert backend.name
        assert backend.framework.isidentifier()
        assert "install" in backend.install
        assert all(suffix.startswith(".") for suffix in backend.suffixes)

    def test_accepts_its_own_models(self, backend: Backend, build: Build) -> None:
        """The framework's models, and nothing else."""
        assert backend.accepts(build(NETWORKS["two_inputs"]())) > 0
        for strange in (None, object(), 3, "model.nothing", np.zeros(3), {"a": 1}):
            assert backend.accepts(strange) == 0, strange

    def test_open_refuses_what_is_no_model(self, backend: Backend) -> None:
        """An IsobitError, not the framework's own."""
        with pytest.raises(IsobitError):
            backend.open(object())

    def test_observing_what_is_not_there(self, open_network: Callable[[str], Opened]) -> None:
        """A tensor that the graph does not have is an error that names it; the model still runs."""
        opened = open_network("two_inputs")
        batch = opened.network.batch(2)
        before = opened.model.run(batch)
        with pytest.raises(IsobitError, match="nothing_there"):
            opened.model.observe([batch], [Request(Tensor("nothing_there"), Collect())])
        assert_same(opened.model.run(batch), before)

    def test_what_a_model_states(self, backend: Backend, open_network: Callable[[str], Opened]) -> None:
        """The name of its backend, and the sites that have quantizers, on or off, also after edits."""
        model = open_network("conv_net").model
        assert model.backend == backend.name
        model.set_quantizers({site: Encoding.of("int8", 0.1) for site in (Tensor("image"), Tensor("bn1"))})
        model.enable([Tensor("image")], on=False)
        assert set(model.inner.quantized) == set(model.encodings()) == {Tensor("image"), Tensor("bn1")}
        FoldBatchNorms().apply(TechniqueContext(model))
        assert set(model.inner.quantized) == set(model.encodings())

    def test_batches_that_do_not_fit(self, open_network: Callable[[str], Opened]) -> None:
        """They are errors of isobit that name shapes, also while observing; the model still runs."""
        opened = open_network("shared_weights")
        batch = opened.network.batch(2)
        before = opened.model.run(batch)
        (name,) = batch
        wrong = {name: batch[name][:, :-1]}
        computed = next(
            iter(opened.model.graph.outputs.values())
        )  # a pass may end with the last tensor that it watches
        with pytest.raises(IsobitError, match=r"failed on a batch of shapes .*\(2, 7\)"):
            opened.model.run(wrong)
        with pytest.raises(IsobitError, match=r"failed on a batch of shapes .*\(2, 7\)"):
            opened.model.observe([batch, wrong], [Request(Tensor(computed), Collect())])
        with pytest.raises(IsobitError, match=f"no array for input '{name}'"):
            opened.model.run({})
        assert_same(opened.model.run({name: batch[name].astype(np.float64), "label": np.ones(2)}), before)

    def test_what_layers_compute(self, open_network: Callable[[str], Opened]) -> None:
        """A dump holds what the graph says, in float and with quantizers, and leaves the quantizers on."""
        opened = open_network("two_inputs")
        sim = QuantSim.of_backend_model(opened.model, registry().target("default"), QuantConfig())
        batch = opened.network.batch(3, 5)
        sim.calibrate([batch], "minmax")
        kept = {name: sim.backend_model.weight(name) for name in sim.graph.weights}
        for simulated, outputs in ((False, sim.run_float(batch)), (True, sim.run(batch))):
            found = dump(sim, batch, simulated=simulated)
            encodings = sim.encodings if simulated else {}
            expected = interpreter.interpret(sim.graph, kept.__getitem__, batch, encodings)
            for name, tensor in found.tensors.items():
                if Tensor(name) in encodings or not simulated:
                    np.testing.assert_allclose(tensor.values, expected[name], atol=1e-5, err_msg=name)
            for name, inner in sim.graph.outputs.items():
                if not simulated or Tensor(inner) in encodings:
                    np.testing.assert_array_equal(found.tensors[inner].values, outputs[name])
        assert_same(sim.run(batch), outputs)

    def test_native_is_the_simulator(self, open_network: Callable[[str], Opened]) -> None:
        """What the user gets is there before and after quantizers are set and edits made."""
        model = open_network("conv_net").model
        assert model.native is not None
        model.set_quantizers({Tensor("image"): Encoding.of("uint8", 0.1, 128)})
        FoldBatchNorms().apply(TechniqueContext(model))
        assert model.native is not None

    def test_save_and_load(self, backend: Backend, build: Build, tmp_path: Path) -> None:
        """A simulator with edits and frozen encodings, put on the float model again: the same to the last bit.

        Corrected biases are of the quantized model alone, so the float model is the one with folded batch norms.
        """
        if backend.name not in registry().backends():
            pytest.skip("the backend is not registered as a plug-in, and loading finds it by name")
        network = NETWORKS["pre_activation"]()
        model = backend.open(build(network), network.batch(2))
        sim = QuantSim.of_backend_model(model, registry().target("default"), QuantConfig(weights="int5"))
        sim.apply(FoldBatchNorms())
        batch, data = network.batch(3, 9), [network.batch(4, seed) for seed in range(2)]
        folded = sim.run_float(batch)
        sim.apply(CorrectBias(), data=data)
        sim.calibrate(data, "percentile=99.9")
        assert_same(sim.run_float(batch), folded)
        sim.freeze([Tensor("image")])
        sim.save(tmp_path / "sim.isobit")
        loaded = load(tmp_path / "sim.isobit", build(network), network.batch(2), backend=backend.name)
        assert dict(loaded.encodings) == dict(sim.encodings)
        assert set(loaded.frozen) == {Tensor("image")}
        assert_same(loaded.run(batch), sim.run(batch))
        assert_same(loaded.run_float(batch), folded)
        other_network = NETWORKS["conv_net"]()
        with pytest.raises(IsobitError, match="another model"):
            load(tmp_path / "sim.isobit", build(other_network), other_network.batch(2), backend=backend.name)
