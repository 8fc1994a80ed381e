"""Bias correction brings the mean outputs back, fast, full and analytic; batch norms are re-estimated."""

from __future__ import annotations

import numpy as np
import pytest
from technique_networks import chain, opened, simulator

from isobit import quantize
from isobit.errors import DataError, EncodingError, FormatError
from isobit.graph import Node, Weight
from isobit.quantsim.checks.quality import output_sqnr
from isobit.techniques import CorrectBias, FoldBatchNorms, ReestimateBatchNorms
from isobit.techniques.context import TechniqueContext
from isobit.techniques.layers.weighted_layer import response
from isobit.testing.networks import Network, NetworkBuilder
from isobit.testing.networks.convolutional import conv_net


def mean_error(network: Network, data, technique=None) -> tuple[float, float]:
    """Largest shift of a channel's mean output, by its standard deviation, and the SQNR of the outputs."""
    sim = simulator(network, weights="int4 per-tensor")
    expected = sim.backend_model.run(data)
    if technique is not None:
        (report,) = sim.apply(technique, data=data)
        assert report.changed
    sim.calibrate(data)
    outputs, name = sim.run(data), next(iter(expected))
    shift = (outputs[name] - expected[name]).mean(axis=0) / expected[name].std(axis=0)
    return float(np.abs(shift).max()), output_sqnr([expected], [outputs])


@pytest.mark.parametrize("group", [1, 8])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mode", ["fast", "full"])
def test_means_come_back(mode: str, bias: bool, group: int) -> None:
    network = chain(3, spread=0, group=group, bias=bias)
    data = network.batch(24)
    before, sqnr = mean_error(network, data)
    after, better = mean_error(network, data, CorrectBias(mode))
    assert before > 0.1
    assert after < (0.6 if mode == "fast" else 0.25) * before  # calibration moves after the correction
    assert better > sqnr


def test_analytic_is_near_the_empirical() -> None:
    """Input means from batch norm statistics, where these are what the layer really has."""
    b = NetworkBuilder("known", 4)
    x = b.conv("first", b.input("x", 16, 4, 4), 12, 1)
    x = b.op("Relu", "relu", b.batch_norm("bn", x))
    b.output("y", b.global_pool("gap", b.conv("second", x, 6, 1)))
    network = b.build()
    weights = {name: np.array(value) for name, value in network.weights.items()}
    weights["bn.running_mean"] = weights["first.bias"]
    weights["bn.running_var"] = (weights["first.weight"] ** 2).sum(axis=(1, 2, 3))
    network = Network("known", network.graph, weights)
    data = network.batch(200)

    def corrected(mode: str) -> np.ndarray:
        sim = simulator(network, weights="int3 per-tensor", overrides={"first.weight": "int16"})
        sim.apply(FoldBatchNorms())
        before = np.array(sim.backend_model.weight("second.bias"))
        (report,) = sim.apply(CorrectBias(mode), data=None if mode == "analytic" else data)
        if mode == "analytic":
            assert report.left == {"first": "no batch norm tells the mean of its input"}
        return sim.backend_model.weight("second.bias") - before

    analytic, empirical = corrected("analytic"), corrected("fast")
    assert np.abs(empirical).max() > 0.05
    np.testing.assert_allclose(analytic, empirical, atol=0.15 * np.abs(empirical).max())


@pytest.mark.parametrize("stride", [1, 2])
def test_response_knows_the_padding(stride: int) -> None:
    """Constant inputs through the reference convolution, borders and all."""
    b = NetworkBuilder("padded", 5)
    x = b.input("x", 3, 5, 5)
    b.output("y", b.conv("conv", x, 4, 3, stride=stride, bias=False))
    network = b.build()
    values = np.array([1.0, -2.0, 0.5])
    batch = {"x": np.broadcast_to(values.reshape(1, -1, 1, 1), (1, 3, 5, 5)).astype(np.float32)}
    expected = opened(network).run(batch)["y"].mean(axis=(0, 2, 3))
    node: Node = network.graph.node("conv")
    mean_output = response(network.weights["conv.weight"], node, values, (5, 5))
    np.testing.assert_allclose(mean_output, expected, rtol=1e-5)


def test_what_bias_correction_needs() -> None:
    network = chain(6, spread=0)
    sim = simulator(network)
    for technique in (CorrectBias(), CorrectBias("full")):
        with pytest.raises(DataError, match="CorrectBias needs data"):
            sim.apply(technique)
    assert CorrectBias().apply(TechniqueContext(opened(network))).left == {"model": "it has no quantized layer"}
    assert sim.simulation.edits == []
    once = iter([network.batch(2)])
    with pytest.raises(DataError, match="5 times"):
        sim.apply(CorrectBias("full"), data=once)
    with pytest.raises(FormatError, match="mode is"):
        CorrectBias("slow")  # type: ignore[arg-type]


def test_one_sample_is_enough_to_run() -> None:
    network = chain(7, spread=0)
    sim = simulator(network)
    (report,) = sim.apply(CorrectBias(), data=network.batch(1))
    assert len(report.changed) == 4
    assert all(np.all(np.isfinite(sim.backend_model.weight(name))) for name in sim.graph.weights)


def test_batch_norms_get_the_statistics_of_the_quantized_model() -> None:
    network = conv_net()
    data = network.batch(16)
    sim = simulator(network, weights="int4 per-tensor")
    (report,) = sim.apply(ReestimateBatchNorms(sweeps=2), data=data)
    assert report.changed == ("bn1", "bn2")
    sim.calibrate(data)
    # By hand: the output of the first convolution with its weight and its input on their grids, and the second's
    # behind the first batch norm as it is now.
    encodings = sim.encodings
    for conv, norm in (("conv1", "bn1"), ("conv2", "bn2")):
        collected = _collected(sim.backend_model, data, conv)
        np.testing.assert_allclose(
            sim.backend_model.weight(f"{norm}.running_mean"), collected.mean((0, 2, 3)), rtol=0.05, atol=0.02
        )
        np.testing.assert_allclose(sim.backend_model.weight(f"{norm}.running_var"), collected.var((0, 2, 3)), rtol=0.1)
    assert encodings


def _collected(model, data, tensor: str) -> np.ndarray:
    from isobit.graph import Tensor
    from isobit.statistics import Request
    from isobit.testing.collecting import Collect

    collect = Collect()
    model.observe([data], [Request(Tensor(tensor), collect)])
    return collect.values


def test_no_batch_norm_is_said() -> None:
    network = chain(8, spread=0)
    sim = simulator(network)
    (report,) = sim.apply(ReestimateBatchNorms(), data=network.batch(2))
    assert "no batch norm" in report.left["model"]
    with pytest.raises(DataError, match="ReestimateBatchNorms needs data"):
        simulator(conv_net()).apply(ReestimateBatchNorms())
    with pytest.raises(FormatError, match="sweep"):
        ReestimateBatchNorms(sweeps=0)


@pytest.mark.parametrize("bias", [True, False])
def test_the_float_model_is_the_one_that_was_given(bias: bool, tmp_path) -> None:
    """Corrections make up for quantization: `run_float` is without them, and so are statistics."""
    network = chain(3, spread=0, bias=bias)
    data = network.batch(24)
    sim = simulator(network, weights="int4 per-tensor")
    exact, name = sim.backend_model.run(data), next(iter(network.graph.outputs))
    fresh = simulator(network, weights="int4 per-tensor")
    sim.apply(CorrectBias(), data=data)
    sim.calibrate(data)
    np.testing.assert_array_equal(sim.run_float(data)[name], exact[name])
    assert not np.array_equal(sim.run(data)[name], exact[name])
    sim.save_statistics(tmp_path / "s.npz")
    fresh.load_statistics(tmp_path / "s.npz")
    fresh.recalibrate("minmax")


def test_it_shares_the_pass_of_calibration() -> None:
    """An iterator that serves once is enough for the default recipe; the full mode needs passes of its own."""
    network = chain(2, spread=0)
    sim = quantize(simulator(network), iter([network.batch(8)]), techniques=[CorrectBias()])
    assert sim.report.techniques[0].changed
    assert quantize(simulator(network), iter([network.batch(8)])).steps[-1].step == "CorrectBias"
    with pytest.raises(DataError, match="an iterator serves once"):
        quantize(simulator(network), iter([network.batch(8)]), techniques=[CorrectBias("full")])


def test_encodings_of_added_biases_load_on_the_model_as_it_came() -> None:
    """The bias that a layer got is nothing that the other simulator lacks; a bias of another name is."""
    network = chain(2, spread=0, bias=False)
    data = network.batch(8)
    corrected, plain = (simulator(network) for _ in range(2))
    quantize(corrected, data)
    added = {str(site) for site in corrected.encodings} - {str(site) for site in plain.plan.placements}
    assert added
    report = plain.load_encodings(corrected.encodings)
    assert set(report.ignored) == added
    assert not report.missing
    foreign = {**corrected.encodings, Weight("nothing.bias"): next(iter(corrected.encodings.values()))}
    with pytest.raises(EncodingError, match=r"nothing\.bias"):
        simulator(network).load_encodings(foreign)


@pytest.mark.parametrize("mode", ["fast", "full"])
def test_batches_that_are_not_finite_are_left_out(mode: str) -> None:
    network = chain(2, spread=0)
    good, bad = network.batch(8), network.batch(8, 1)
    bad["x"][3, 0, 0, 0] = np.nan
    corrected = []
    for data in ([good], [good, bad], [bad]):
        sim = simulator(network, weights="int4 per-tensor")
        (report,) = sim.apply(CorrectBias(mode), data=data, ignore_non_finite=True)
        biases = [n.inputs[2] for n in sim.graph.nodes if n.op == "Conv"]
        corrected.append([sim.backend_model.weight(name) for name in biases])
    for first, second in zip(*corrected[:2], strict=True):
        np.testing.assert_array_equal(first, second)
    assert not report.changed
    assert all("no batch of it is finite" in why for why in report.left.values())
