"""Part 8: the techniques, each of which works through the contract alone and so on every backend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from isobit.calibration.schemes.minmax import MinMaxRange
from isobit.data import Batch, Dataset
from isobit.errors import DataError
from isobit.placement.quant_config import QuantConfig
from isobit.plugins import registry
from isobit.quantsim.checks.quality import output_sqnr, sample_decibels
from isobit.quantsim.quantsim import QuantSim
from isobit.quantsim.run_recipe import run_recipe
from isobit.techniques.ada_round import AdaRound
from isobit.techniques.awq import Awq
from isobit.techniques.balance_channels import BalanceChannels
from isobit.techniques.context import TechniqueContext
from isobit.techniques.correct_bias import CorrectBias
from isobit.techniques.equalize_cross_layers import EqualizeCrossLayers
from isobit.techniques.fold_batch_norms import FoldBatchNorms
from isobit.techniques.gptq import GPTQ
from isobit.techniques.reestimate_batch_norms import ReestimateBatchNorms
from isobit.techniques.smooth_quant import SmoothQuant
from isobit.techniques.spatial_svd import SpatialSvd
from isobit.techniques.technique import Technique
from isobit.techniques.weight_svd import WeightSvd
from isobit.testing import interpreter
from isobit.testing.conformance.base import ConformanceBase, Opened, assert_close
from isobit.testing.rescaling import unbalance

Open = Callable[[str], Opened]


class TechniquesConformance(ConformanceBase):
    """Every technique keeps what it must keep, and improves what it is for."""

    @pytest.mark.parametrize("name", ["conv_net", "inverted_residual", "upsampler", "two_inputs"])
    def test_equalizing_keeps_the_function(self, open_network: Open, name: str) -> None:
        """Through convolutions of all kinds, linear layers and pooling; clips one by one for each channel."""
        opened = open_network(name)
        model, batch = opened.model, opened.network.batch(3)
        before = model.run(batch)
        FoldBatchNorms().apply(TechniqueContext(model))
        EqualizeCrossLayers(absorb_biases=False, clip="per-channel").apply(TechniqueContext(model))
        assert_close(model.run(batch), before)
        assert_close(model.run(batch), opened.expected(batch))

    @pytest.mark.parametrize("name", ["conv_net", "upsampler", "two_inputs", "attention"])
    def test_low_rank_factors(self, open_network: Open, name: str) -> None:
        """All ranks keep the function; fewer give the network whose graph and weights the backend then shows."""
        for technique, ops in ((SpatialSvd, {"Conv"}), (WeightSvd, {"Conv", "Linear"})):
            opened = open_network(name)
            model, batch = opened.model, opened.network.batch(3)
            graph = model.graph
            layers = [node for node in graph.nodes if node.op in ops]
            ranks = {node.name: _ranks(model.weight(node.inputs[1] or ""), technique) for node in layers}
            splittable = technique(0.999).apply(TechniqueContext(model.copy())).left
            full = {layer: rank for layer, rank in ranks.items() if "cost" in splittable.get(layer, "cost")}
            before = model.run(batch)
            technique(1.0, full).apply(TechniqueContext(model))
            assert len(model.graph.nodes) == len(graph.nodes) + len(full)
            assert_close(model.run(batch), before)
            cut = open_network(name).model
            technique(1.0, {layer: max(1, rank // 2) for layer, rank in full.items()}).apply(TechniqueContext(cut))
            assert_close(cut.run(batch), interpreter.outputs(cut.graph, cut.weight, batch))

    @pytest.mark.parametrize("technique", [SmoothQuant(0.5), SmoothQuant(), Awq()])
    def test_scaling_inputs_keeps_the_function(self, open_network: Open, technique: Technique) -> None:
        """The factors go into a layer norm, or into a Mul where its output has other readers."""
        opened = open_network("attention")
        sim, batch = _sim(opened, "onnxruntime-cpu-transformer"), opened.network.batch(3)
        before = sim.backend_model.run(batch)
        (report,) = sim.apply(technique, data=[batch])
        assert_close(sim.backend_model.run(batch), before)
        if technique == SmoothQuant(0.5):
            readers = [text.partition(": ")[0].split(", ") for text in report.changed]  # a node may be `path#n`
            assert {"query", "key", "value"} in [{name.partition("#")[0] for name in names} for names in readers]
            assert any(text.endswith("a Mul") for text in report.changed)

    @pytest.mark.parametrize("curve", ["Relu", "HardSwish"])
    def test_balancing_channels_keeps_the_function(self, open_network: Open, curve: str) -> None:
        """Factors go through Relu for nothing, and beside another curve into Muls; fewer bits are lost."""
        opened, plain = open_network("inverted_residual"), open_network("inverted_residual")
        for model in (opened.model, plain.model):
            unbalance(model, curve)
        sim = QuantSim.of_backend_model(opened.model, registry().target("onnxruntime-cpu"), QuantConfig())
        unchanged = QuantSim.of_backend_model(plain.model, registry().target("onnxruntime-cpu"), QuantConfig())
        sim.simulation.check = unchanged.simulation.check = False  # it is no longer the model as given
        batch, new = opened.network.batch(16), opened.network.batch(16, 1)
        before = sim.backend_model.run(new)
        (report,) = sim.apply(BalanceChannels(mul_gain=1, mul_share=0), data=[batch])
        assert report.changed
        assert any("a Mul of" in text for text in report.changed) == (curve != "Relu")
        assert_close(sim.backend_model.run(new), before)
        reached, without = (output_sqnr([before], [_calibrated(s, batch).run(new)]) for s in (sim, unchanged))
        assert reached > without + 1

    @pytest.mark.parametrize(
        ("name", "technique", "method"),
        [
            ("conv_net", CorrectBias("full"), "minmax"),
            ("inverted_residual", CorrectBias(), "minmax"),
            ("inverted_residual", CorrectBias(), "percentile=99"),
            ("upsampler", CorrectBias(), "minmax"),
            ("attention", CorrectBias(), "minmax"),
        ],
    )
    def test_corrected_biases(self, open_network: Open, name: str, technique: CorrectBias, method: str) -> None:
        """Mean outputs of the coarsely quantized model come nearer to the float model's."""
        opened = open_network(name)
        batch, reference = opened.network.batch(12), opened.model.copy()
        sim = _sim(opened)
        sim.apply(FoldBatchNorms())
        plain = _mean_shift(_calibrated(sim, batch, method), reference, batch)
        (report,) = sim.apply(technique, data=[batch], method=method)
        assert report.changed
        corrected = _mean_shift(_calibrated(sim, batch, method), reference, batch)
        assert corrected < 0.95 * plain

    @pytest.mark.parametrize(
        ("observing", "applied"),
        [
            (AdaRound(), (AdaRound(), AdaRound(scales="minmax"), AdaRound(damping=0.1))),
            (GPTQ(), (GPTQ(), AdaRound())),
            (CorrectBias(), (CorrectBias(),)),
        ],
        ids=("AdaRound", "GPTQ", "CorrectBias"),
    )
    def test_a_technique_runs_again_from_statistics(
        self, open_network: Open, tmp_path: Path, observing: Technique, applied: tuple[Technique, ...]
    ) -> None:
        """Observed once and saved, a technique needs no data, whatever its other settings are."""
        network = open_network("conv_net").network
        data, path = [network.batch(4, seed) for seed in range(2)], tmp_path / "statistics.npz"
        sim = _sim(open_network("conv_net"))
        sim.apply(FoldBatchNorms())
        sim.observe(observing, data=data)
        sim.save_statistics(path)
        for technique in applied:
            direct, from_statistics = _sim(open_network("conv_net")), _sim(open_network("conv_net"))
            for simulator in (direct, from_statistics):
                simulator.apply(FoldBatchNorms())
            (expected,) = direct.apply(technique, data=data)
            from_statistics.load_statistics(path)
            (report,) = from_statistics.apply(technique)
            assert report.changed == expected.changed
            assert report.encodings == expected.encodings
            for name in direct.graph.weights:
                np.testing.assert_array_equal(
                    from_statistics.backend_model.weight(name), direct.backend_model.weight(name)
                )
        with pytest.raises(DataError, match="of another model"):
            _sim(open_network("conv_net")).load_statistics(path)  # before folding it is one

    def test_batch_norms_are_reestimated(self, open_network: Open) -> None:
        """Their statistics become those of their inputs in the quantized model."""
        opened = open_network("conv_net")
        sim, batch = _sim(opened), opened.network.batch(8)
        old = np.array(sim.backend_model.weight("bn1.running_var"))
        (report,) = sim.apply(ReestimateBatchNorms(), data=[batch])
        assert report.changed == ("bn1", "bn2")
        assert not np.allclose(sim.backend_model.weight("bn1.running_var"), old, rtol=1e-3)

    def test_a_recipe_and_its_rollback(self, open_network: Open) -> None:
        """A recipe runs, never ends worse than it began, and a checkpoint brings every weight back."""
        opened = open_network("conv_net")
        sim, batch = _sim(opened), opened.network.batch(8)
        model = sim.backend_model
        before = {name: np.array(model.weight(name)) for name in model.graph.weights}
        expected, checkpoint = model.run(batch), sim.checkpoint()
        passes = sim.passes(Dataset([batch], sim.graph), None, None, None)
        run_recipe(sim.simulation, registry().recipe("ptq"), passes, MinMaxRange())
        judged = [step for step in sim.steps if step.after is not None and step.outcome == "kept"]
        reached = np.mean(sample_decibels(expected, _calibrated(sim, batch).run(batch)))
        assert judged
        assert reached == pytest.approx(judged[-1].after, abs=0.1)
        sim.roll_back(checkpoint)
        for name, value in before.items():
            np.testing.assert_array_equal(sim.backend_model.weight(name), value)
        assert_close(sim.backend_model.run(batch), expected)


def _sim(opened: Opened, target: str = "default") -> QuantSim:
    return QuantSim.of_backend_model(opened.model, registry().target(target), QuantConfig("int4 per-tensor"))


def _calibrated(sim: QuantSim, batch: Batch, method: str = "minmax") -> QuantSim:
    sim.calibrate([batch], method)
    return sim


def _mean_shift(sim: QuantSim, reference: object, batch: Batch) -> float:
    """Root mean square, over the channels of all outputs, of the shift of their means in standard deviations."""
    quantized, expected = sim.run(batch), reference.run(batch)  # type: ignore[attr-defined]
    shifts = []
    for name, value in expected.items():
        other_axes = tuple(i for i in range(value.ndim) if i != (1 if value.ndim != 3 else 2))
        shifts.append((quantized[name] - value).mean(other_axes) / (value.std() + 1e-9))
    return float(np.sqrt(np.mean(np.square(np.concatenate([shift.reshape(-1) for shift in shifts])))))


def _ranks(weight: NDArray[np.float32], technique: type[SpatialSvd] | type[WeightSvd]) -> int:
    """How many ranks a layer's weight has for a technique."""
    out, inputs, *kernel = weight.shape
    if technique is SpatialSvd:
        return min(out * kernel[-1], inputs * kernel[0]) if kernel else 0
    return min(int(out), int(inputs * np.prod(kernel)))
