"""Part 10: networks made smaller, as the framework's own models that can be quantized afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from isobit.backend.checked_model import CheckedModel
from isobit.backend.contract import Backend
from isobit.budget import Cost, layer_costs
from isobit.compression.compress import compress
from isobit.data import Batch, Dataset
from isobit.quantsim.quantize import quantize
from isobit.quantsim.quantsim import QuantSim
from isobit.techniques.context import TechniqueContext
from isobit.techniques.spatial_svd import SpatialSvd
from isobit.techniques.tucker_2 import Tucker2
from isobit.techniques.weight_svd import WeightSvd
from isobit.testing import interpreter
from isobit.testing.conformance.base import Build, ConformanceBase, Opened, assert_close
from isobit.testing.networks import NETWORKS, Network, NetworkBuilder

Open = Callable[[str], Opened]


class CompressingConformance(ConformanceBase):
    """`isobit.compress` on the backend's models, and what each method does to their outputs."""

    def test_keeping_all_changes_nothing(self, backend: Backend, build: Build) -> None:
        """The same function, and the report says that nothing was done."""
        network = NETWORKS["two_inputs"]()
        batch = network.batch(3)
        result = compress(build(network), batch, keep=1.0, backend=backend)
        assert_close(
            result.backend_model.run(batch), CheckedModel.of(backend.open(build(network), batch)).run(batch), 1e-5
        )
        assert result.report.before == result.report.after
        assert "nothing was changed: keep is 1" in result.report.notes

    @pytest.mark.parametrize("name", ["conv_net", "two_inputs"])
    def test_half_the_cost_and_then_quantized(self, backend: Backend, build: Build, name: str) -> None:
        """The native model is smaller, runs as its graph says, does the same by its recipe, and can be quantized."""
        network = NETWORKS[name]()
        batch = network.batch(4)
        result = compress(build(network), [batch], keep=0.8, cost="parameters", backend=backend, trials=2)
        assert 0.7 < result.report.kept <= 0.8
        reopened = CheckedModel.of(backend.open(result.model, batch))
        assert result.report.after.parameters == sum_of_float_constants(result.backend_model)
        cost = Cost.sum(layer_costs(reopened.graph).values())  # norms may be read in steps, layers are not
        assert cost.macs == result.report.after.macs < result.report.before.macs
        smaller = result.backend_model
        expected = interpreter.outputs(smaller.graph, smaller.weight, batch)
        assert_close(smaller.run(batch), expected)
        assert_close(reopened.run(batch), expected)
        again = compress(build(network), [batch], recipe=result.recipe, backend=backend)
        assert_close(again.backend_model.run(batch), expected)
        sim = quantize(result.model, [batch], recipe="basic", method="minmax", backend=backend)
        assert sim.backend_model.encodings()

    @pytest.mark.parametrize("method", ["channel-pruning", "spatial-svd", "tucker-2", "weight-svd"])
    def test_the_share_that_is_asked_for_is_kept(
        self, backend: Backend, build: Build, tmp_path: Path, method: str
    ) -> None:
        """To 1 %, with fewer parameters in the native model and in its file; the model runs as its graph says."""
        network = wide()
        batch = network.batch(8)
        sim = QuantSim(build(network), batch, backend=backend)
        before = sum_of_float_constants(sim.simulation.model)
        result = compress(sim, [batch], method=method, keep=0.5, trials=1, backend=backend)
        smaller = result.backend_model
        after = sum_of_float_constants(smaller)
        assert abs(result.report.kept / 0.5 - 1) <= 0.01
        assert after == result.report.after.parameters < 0.6 * before
        assert_close(smaller.run(batch), interpreter.outputs(smaller.graph, smaller.weight, batch))
        file = result.export(tmp_path)["model"]
        assert 4 * after < file.stat().st_size < 4 * before  # bytes of float32

    @pytest.mark.parametrize("technique", [SpatialSvd, WeightSvd, Tucker2])
    def test_transposed_convolutions_are_split(
        self, open_network: Open, technique: type[SpatialSvd] | type[WeightSvd] | type[Tucker2]
    ) -> None:
        """The smaller model is the one that the core planned."""
        opened = open_network("upsampler")
        model, batch = opened.model, opened.network.batch(3)
        report = technique(0.9).apply(TechniqueContext(model))
        ups = {node.name for node in opened.network.graph.nodes if node.op == "ConvTranspose"}
        assert ups & {text.partition(":")[0] for text in report.changed}
        assert_close(model.run(batch), interpreter.outputs(model.graph, model.weight, batch))

    @pytest.mark.parametrize("technique", [SpatialSvd, WeightSvd, Tucker2])
    def test_data_makes_the_error_of_the_output_smaller(
        self, open_network: Open, technique: type[SpatialSvd] | type[WeightSvd] | type[Tucker2]
    ) -> None:
        """On the data that was observed, no more than by weights alone."""
        errors = []
        for data_aware in (True, False):
            opened = open_network("conv_net")
            model, batch = opened.model, skewed(opened.network.batch(8))
            before = model.run(batch)
            context = TechniqueContext(model, dataset=Dataset([batch], model.graph))
            first = next(
                node for node in model.graph.nodes if node.op == "Conv" and not _is_thin(model, node.inputs[1])
            )
            ranks: dict[str, object] = {first.name: [2, 2] if technique is Tucker2 else 2}
            assert technique(1.0, ranks, data_aware).apply(context).changed  # type: ignore[arg-type]
            errors.append(error(before, model.run(batch)))
        assert errors[0] <= errors[1] * 1.02


def wide() -> Network:
    """Layers of enough channels, and of different numbers, that sizes come near to any share."""
    b = NetworkBuilder("wide")
    x = b.input("x", 3, 4, 4)
    for index, channels in enumerate((24, 32, 40, 28)):
        x = b.op("Relu", f"relu{index}", b.conv(f"conv{index}", x, channels, 3))
    b.output("logits", b.linear("fc", b.global_pool("pool", x), 5))
    return b.build()


def skewed(batch: Batch) -> dict[str, NDArray[np.float32]]:
    """Channels of unequal power, so that it matters which of them errors fall on."""
    scaled = {}
    for name, value in batch.items():
        shape = (1, -1, *(1,) * (value.ndim - 2))
        scaled[name] = (value * np.geomspace(1, 0.1, value.shape[1]).reshape(shape)).astype(np.float32)
    return scaled


def error(before: Batch, after: Batch) -> float:
    """Sum of squares of all outputs' errors."""
    return float(sum(np.square(after[name].astype(np.float64) - before[name]).sum() for name in before))


def sum_of_float_constants(model: CheckedModel) -> float:
    """Parameters counted over the native arrays, without the cost model: what is trained, not what is observed."""
    sources = {}
    for name, info in model.graph.weights.items():
        roles = {use.role for use in model.graph.uses(name)}
        if info.is_float and not roles & {"mean", "variance"}:
            sources[info.source or name] = float(np.prod(info.shape))
    return sum(sources.values())


def _is_thin(model: CheckedModel, weight: str | None) -> bool:
    """Whether a convolution has too few channels, or a kernel of one position."""
    out, inputs, *kernel = model.graph.weights[weight or ""].shape
    return min(out, inputs) < 3 or len(kernel) != 2 or min(kernel) == 1
