"""SequentialMse, GPTQ and AdaRound through the contract, on the NumPy backend."""

from __future__ import annotations

import numpy as np
import pytest
from numpy_backend import NumpyModel, checked

from isobit.data import Dataset
from isobit.encodings import QuantSpec
from isobit.errors import DataError
from isobit.graph import Weight
from isobit.placement import Placement, QuantConfig
from isobit.plugins import registry
from isobit.quantsim import QuantSim
from isobit.statistics import Patches, Rows
from isobit.techniques import GPTQ, AdaRound, FoldBatchNorms, SequentialMse
from isobit.techniques.context import TechniqueContext
from isobit.techniques.rounding.layers import Layer, find_layers
from isobit.techniques.rounding.procedure import Procedure
from isobit.testing.networks import NETWORKS, NetworkBuilder

TECHNIQUES = {"SequentialMse": SequentialMse(), "GPTQ": GPTQ(), "AdaRound": AdaRound()}


def simulator(network, weights="int4 per-channel", **config):
    model = checked(network.graph, network.weights)
    sim = QuantSim.of_backend_model(model, registry().target("default"), QuantConfig(weights, None, config, ()))
    sim.apply(FoldBatchNorms())
    return sim


def mlp(seed=0, **extra):
    b = NetworkBuilder("mlp", seed)
    x = b.op("Relu", "r1", b.linear("fc1", b.input("x", 12), 24))
    x = b.op("Relu", "r2", b.linear("fc2", x, 24, **extra))
    b.output("y", b.linear("fc3", x, 6))
    return b.build()


def correlated(count, seed=0):
    mix = np.random.default_rng(1000).standard_normal((4, 12))
    return {"x": (np.random.default_rng(seed).standard_normal((count, 4)) @ mix).astype(np.float32)}


def sqnr(sim, float_model, batch):
    reference, outputs = float_model.run(batch)["y"].astype(np.float64), sim.run(batch)["y"]
    return 10 * np.log10(np.square(reference).sum() / np.square(outputs - reference).sum())


def quantized(technique, network=None, data=None, **settings):
    network = mlp() if network is None else network
    sim = simulator(network, **settings)
    data = correlated(300) if data is None else data
    reports = sim.apply(*([technique] if technique else []), data=data)
    sim.calibrate(data)
    return sim, reports[-1] if reports else None


@pytest.mark.parametrize("name", TECHNIQUES)
def test_outputs_come_closer_on_new_data(name):
    """Held-out data of the same distribution: better than nearest, and the weights written are on the frozen grid."""
    network = mlp()
    plain = checked(network.graph, network.weights)
    held_out = correlated(500, seed=1)
    sim, report = quantized(TECHNIQUES[name])
    nearest, _ = quantized(None)
    assert sqnr(sim, plain, held_out) > sqnr(nearest, plain, held_out) + 0.5
    assert report.technique == name
    assert len(report.changed) == 3
    assert not report.left
    for weight in ("fc1.weight", "fc2.weight", "fc3.weight"):
        encoding, value = sim.encodings[weight], sim.backend_model.weight(weight)
        assert encoding == report.encodings[Weight(weight)]
        np.testing.assert_array_equal(encoding.fake_quantize(value), value)


@pytest.mark.parametrize("network", ["inverted_residual", "upsampler", "shared_weights"])
def test_networks_of_all_kinds(network):
    """Depthwise, transposed, grouped, shared weights: each layer's own error falls."""
    network = NETWORKS[network]()
    sim = simulator(network)
    (report,) = sim.apply(AdaRound(), data=network.batch(6))
    assert report.changed
    for line in report.changed:
        before, after = (float(number) for number in line.split("output ")[1].split(" of")[0].split(" -> "))
        assert after <= before
    sim.calibrate(network.batch(6))


def test_same_with_little_memory():
    """Groups of layers, with passes of their own, give the same weights and encodings."""
    at_once, _ = quantized(AdaRound())
    assert len(Procedure(memory=20_000).groups(find_layers(at_once.graph, at_once.plan)[0])) == 2
    parts, _ = quantized(AdaRound(rows=100, memory=20_000))
    other, _ = quantized(AdaRound(rows=100))
    for weight in ("fc1.weight", "fc3.weight"):
        np.testing.assert_array_equal(parts.backend_model.weight(weight), other.backend_model.weight(weight))


def test_rows_of_one_layer_are_bounded_in_bytes():
    """However many weights a channel, or channels of their own, a layer has; and enough rows where they are few."""
    for shape, groups in (((16, 128, 64, 1), 1), ((1152, 1, 3, 3), 1152), ((64, 64, 3, 3), 1), ((4096, 4096), 1)):
        patches = Patches("Conv" if len(shape) == 4 else "Linear", shape, groups)
        placement = Placement(Weight("w"), QuantSpec.parse("int4"), "weight", channel_axis=0, block_axis=1)
        layer, procedure = Layer("w", placement, {"y": patches}), Procedure()
        assert procedure.cost(layer) <= 64 << 20
        assert procedure.limit(layer) >= min(2048, 8 * patches.columns)


def test_layers_of_one_input_share_a_pass():
    """Queries, keys and values: rounding one of them does not change what the others read, and rows are kept once."""

    class Counting(NumpyModel):
        passes = 0
        rows = 0

        def observe(self, data, requests):
            Counting.passes += 1
            Counting.rows += sum(isinstance(request.observer, Rows) for request in requests)
            super().observe(data, requests)

    b = NetworkBuilder("three", 0)
    x = b.input("x", 12)
    heads = [b.linear(name, x, 8) for name in ("query", "key", "value")]
    b.output("y", b.op("Add", "sum", b.op("Mul", "product", *heads[:2]), heads[2]))
    network = b.build()
    sim = QuantSim.of_backend_model(
        Counting(network.graph, network.weights), registry().target("default"), QuantConfig("int4", None, {}, ())
    )
    sim.apply(AdaRound(sequential=True), data=correlated(64))
    assert (Counting.passes, Counting.rows) == (2, 2)
    sim.apply(
        AdaRound(damping=0.1, memory=4096), data=correlated(64)
    )  # for 64 rows of 12, not for as many as would be kept
    assert (Counting.passes, Counting.rows) == (4, 3)


def test_batch_size_does_not_matter():
    sims = []
    for size in (300, 7):
        sim = simulator(mlp())
        sim.apply(AdaRound(), data=correlated(300), batch_size=size)
        sims.append(sim)
    np.testing.assert_allclose(*(sim.backend_model.weight("fc2.weight") for sim in sims), rtol=1e-6)


def test_sequential_makes_up_for_earlier_layers():
    """The exact mode's outputs are at least about as close as the fast mode's."""
    network = mlp(3)
    plain, held_out = checked(network.graph, network.weights), correlated(500, seed=1)
    fast, _ = quantized(AdaRound(), network)
    exact, _ = quantized(AdaRound(sequential=True), network)
    assert sqnr(exact, plain, held_out) > sqnr(fast, plain, held_out) - 0.3


def test_passes_are_counted():
    """Fast: one float pass and one for each sweep, whatever the depth. Sequential: one a layer besides."""

    class Counting(NumpyModel):
        passes = 0
        rows = 0

        def observe(self, data, requests):
            Counting.passes += 1
            Counting.rows += sum(isinstance(request.observer, Rows) for request in requests)
            super().observe(data, requests)

    network = mlp()
    for technique, passes in ((AdaRound(), 2), (GPTQ(sweeps=3), 4), (AdaRound(sequential=True), 4)):
        Counting.passes = 0
        sim = QuantSim.of_backend_model(
            Counting(network.graph, network.weights), registry().target("default"), QuantConfig("int4", None, {}, ())
        )
        sim.apply(technique, data=correlated(64))
        assert Counting.passes == passes


@pytest.mark.parametrize("spec", ["int4 per-tensor", "uint4 per-channel", "int4 block=4", "int8 per-channel"])
def test_formats(spec):
    network = mlp()
    plain = checked(network.graph, network.weights)
    sim, _ = quantized(AdaRound(), weights=spec)
    nearest, _ = quantized(None, weights=spec)
    held_out = correlated(500, seed=1)
    assert sqnr(sim, plain, held_out) > sqnr(nearest, plain, held_out) - 0.2


def test_a_bias_is_made_where_there_is_none():
    """The mean of the error goes into a bias, on the calibration data to the last digit of the rounding of biases."""
    network = mlp(bias=False)
    sim, _ = quantized(AdaRound(), network)
    assert sim.graph.node("fc2").input(2) is not None
    without_bias, _ = quantized(AdaRound(correct_bias=False), network)
    assert without_bias.graph.node("fc2").input(2) is None


def test_one_sample_is_noted():
    """A rank-deficient Gram is damped, and the report says so and names the layer."""
    _, report = quantized(AdaRound(), data=correlated(1))
    assert any(note.startswith("fc1: 1 rows of data for 12 weights a channel") for note in report.notes)
    assert all(np.isfinite(e.scale).all() for e in report.encodings.values())


def test_dead_channels_and_zero_weights():
    """Channels of zero range, all-zero weights and inputs that never fire change nothing for the worse."""
    network = mlp()
    weights = {name: value.copy() for name, value in network.weights.items()}
    weights["fc1.weight"][3] = 0
    weights["fc1.bias"][:5] = -1e3  # never fires
    weights["fc3.weight"][:] = 0
    sim = simulator(type(network)(network.name, network.graph, weights))
    (report,) = sim.apply(AdaRound(), data=correlated(64))
    sim.calibrate(correlated(64))
    assert len(report.changed) == 3
    assert not sim.backend_model.weight("fc3.weight").any()
    assert not sim.backend_model.weight("fc1.weight")[3].any()


def test_what_is_left_has_a_reason():
    sim = simulator(mlp(), **{"fc1.weight": "float16"})
    (report,) = sim.apply(AdaRound(), data=correlated(64))
    assert report.left == {"fc1.weight": "float16 has no integers to round to"}
    recurrent = NETWORKS["recurrent"]()
    (report,) = simulator(recurrent).apply(GPTQ(), data=recurrent.batch(4))
    assert "does not multiply its input with it" in report.left["lstm.weight_ih_l0"]


def test_needs_that_are_not_met():
    """Without data nothing is changed, and the error says what to do; without a plan there is nothing to do."""
    network = mlp()
    sim = simulator(network)
    with pytest.raises(DataError, match="AdaRound needs data, .*: pass data="):
        sim.apply(AdaRound())
    np.testing.assert_array_equal(sim.backend_model.weight("fc1.weight"), network.weights["fc1.weight"])
    assert not GPTQ().apply(TechniqueContext(sim.backend_model, dataset=Dataset(correlated(4), sim.graph))).changed
    with pytest.raises(DataError, match="AdaRound goes through the data 2 times"):
        sim.apply(AdaRound(), data=iter([correlated(4)]))
