"""Part 8: the techniques, each of which works through the contract alone and so on every backend."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from isobit.backend import Batch
from isobit.calibration import MinMaxRange
from isobit.calibration.scheme import Calibrator
from isobit.cooking import cook, output_sqnr
from isobit.plugins import registry
from isobit.quantsim import QuantSim
from isobit.techniques import (
    Awq,
    CorrectBias,
    EqualizeCrossLayers,
    FoldBatchNorms,
    ReestimateBatchNorms,
    SmoothQuant,
    SpatialSvd,
    Technique,
    WeightSvd,
)
from isobit.testing import interpreter
from isobit.testing.conformance.setting import Opened, Setting, assert_close
from isobit.wishes import Wishes

Open = Callable[[str], Opened]


class TechniquesConformance(Setting):
    """Every technique keeps what it must keep, and improves what it is for."""

    @pytest.mark.parametrize("name", ["conv_net", "inverted_residual", "upsampler", "two_inputs"])
    def test_equalizing_keeps_the_function(self, open_network: Open, name: str) -> None:
        """Through convolutions of all kinds, linear layers and pooling; clips one by one for each channel."""
        opened = open_network(name)
        model, batch = opened.model, opened.network.batch(3)
        before = model.run(batch)
        FoldBatchNorms().apply(model)
        EqualizeCrossLayers(absorb_biases=False, clip="per-channel").apply(model)
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
            splittable = technique(0.999).apply(model.copy()).left
            full = {layer: rank for layer, rank in ranks.items() if "cost" in splittable.get(layer, "cost")}
            before = model.run(batch)
            technique(ranks=full).apply(model)
            assert len(model.graph.nodes) == len(graph.nodes) + len(full)
            assert_close(model.run(batch), before)
            cut = open_network(name).model
            technique(ranks={layer: max(1, rank // 2) for layer, rank in full.items()}).apply(cut)
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

    @pytest.mark.parametrize(
        ("name", "technique"),
        [
            ("conv_net", CorrectBias("full")),
            ("inverted_residual", CorrectBias()),
            ("inverted_residual", CorrectBias(calibration="percentile=99")),
            ("upsampler", CorrectBias()),
            ("attention", CorrectBias()),
        ],
    )
    def test_corrected_biases(self, open_network: Open, name: str, technique: CorrectBias) -> None:
        """Mean outputs of the coarsely quantized model come nearer to the float model's."""
        opened = open_network(name)
        batch, reference = opened.network.batch(12), opened.model.copy()
        sim = _sim(opened)
        sim.apply(FoldBatchNorms())
        plain = _mean_shift(_calibrated(sim, batch, technique.calibration), reference, batch)
        (report,) = sim.apply(technique, data=[batch])
        assert report.changed
        corrected = _mean_shift(_calibrated(sim, batch, technique.calibration), reference, batch)
        assert corrected < 0.95 * plain

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
        wanted, checkpoint = model.run(batch), sim.checkpoint()
        steps = cook(sim, registry().recipe("ptq"), [batch], MinMaxRange())
        judged = [step for step in steps if step.after is not None and step.outcome == "kept"]
        reached = output_sqnr([wanted], [_calibrated(sim, batch).run(batch)])
        assert judged
        assert reached == pytest.approx(judged[-1].after, abs=0.1)
        sim.roll_back(checkpoint)
        for name, value in before.items():
            np.testing.assert_array_equal(sim.backend_model.weight(name), value)
        assert_close(sim.backend_model.run(batch), wanted)


def _sim(opened: Opened, target: str = "default") -> QuantSim:
    return QuantSim.of_backend_model(opened.model, registry().target(target), Wishes("int4 per-tensor"))


def _calibrated(sim: QuantSim, batch: Batch, method: str | Calibrator = "minmax") -> QuantSim:
    sim.calibrate([batch], method)
    return sim


def _mean_shift(sim: QuantSim, reference: object, batch: Batch) -> float:
    """Root mean square, over the channels of all outputs, of the shift of their means in standard deviations."""
    found, wanted = sim.run(batch), reference.run(batch)  # type: ignore[attr-defined]
    shifts = []
    for name, value in wanted.items():
        others = tuple(i for i in range(value.ndim) if i != (1 if value.ndim != 3 else 2))
        shifts.append((found[name] - value).mean(others) / (value.std() + 1e-9))
    return float(np.sqrt(np.mean(np.square(np.concatenate([shift.reshape(-1) for shift in shifts])))))


def _ranks(weight: NDArray[np.float32], technique: type[SpatialSvd] | type[WeightSvd]) -> int:
    """How many ranks a layer's weight has for a technique."""
    out, inputs, *kernel = weight.shape
    if technique is SpatialSvd:
        return min(out * kernel[-1], inputs * kernel[0]) if kernel else 0
    return min(int(out), int(inputs * np.prod(kernel)))
