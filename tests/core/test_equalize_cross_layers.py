"""Equalization keeps the function, evens the ranges, skips what it may not change, and repairs rescaled channels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sketch import Sketch
from technique_networks import assert_same_function, chain, opened, simulator

from isobit.canonical import canonicalize
from isobit.data import Dataset
from isobit.errors import FormatError
from isobit.quantsim.checks.quality import output_sqnr
from isobit.techniques import EqualizeCrossLayers, FoldBatchNorms
from isobit.techniques.context import TechniqueContext
from isobit.techniques.layers.normal import NormalPerChannel
from isobit.testing.networks import Network, NetworkBuilder
from isobit.testing.networks.convolutional import inverted_residual, upsampler
from isobit.testing.networks.fully_connected import shared_weights


def ranges_out(weight: np.ndarray) -> np.ndarray:
    return np.abs(weight).reshape(weight.shape[0], -1).max(axis=1)


@given(
    seed=st.integers(0, 1000),
    middle=st.sampled_from(["Relu", "PRelu", "LeakyRelu", ""]),
    group=st.sampled_from([1, 2, 8]),
    bias=st.booleans(),
    absorb=st.booleans(),
)
def test_the_function_stays(seed: int, middle: str, group: int, bias: bool, absorb: bool) -> None:
    network = chain(seed, middle=middle, group=group, bias=bias, size=3)
    model, batch = opened(network), network.batch(2, seed)
    before = model.run(batch)
    report = EqualizeCrossLayers(absorb_biases=False).apply(TechniqueContext(model))
    assert len([text for text in report.changed if "factors" in text]) == 3
    assert_same_function(model.run(batch), before)
    if absorb and middle == "":  # what no activation follows is absorbed exactly, wherever nothing pads
        EqualizeCrossLayers().apply(TechniqueContext(model, dataset=Dataset([batch], model.graph)))
        assert_same_function(model.run(batch), before)


def test_both_sides_get_the_same_ranges() -> None:
    network = chain(middle="Relu", group=8)
    model = opened(network)
    EqualizeCrossLayers(absorb_biases=False).apply(TechniqueContext(model))
    conv0, conv1, conv2, fc = (model.weight(f"{name}.weight") for name in ("conv0", "conv1", "conv2", "fc"))
    np.testing.assert_allclose(ranges_out(conv0), ranges_out(conv1), rtol=1e-3)
    np.testing.assert_allclose(ranges_out(conv1), np.abs(conv2).max(axis=(0, 2, 3)), rtol=1e-3)
    np.testing.assert_allclose(ranges_out(conv2), np.abs(fc).max(axis=0), rtol=1e-3)


def test_the_factor_of_the_paper() -> None:
    """Two layers: after one sweep each range is sqrt(r1 * r2)."""
    s = Sketch(3)
    y = s.node("Linear", s.input("x", "N", 3), s.random("a.w", 4, 3), s.random("a.b", 4), name="a", shape=("N", 4))
    y = s.node(
        "Linear", s.node("Relu", y, name="relu", shape=("N", 4)), s.random("b.w", 2, 4), name="b", shape=("N", 2)
    )
    network = Network("two", canonicalize(s.graph(y)), s.values)
    model = opened(network)
    EqualizeCrossLayers(absorb_biases=False).apply(TechniqueContext(model))
    expected = np.sqrt(np.abs(s.values["a.w"]).max(1) * np.abs(s.values["b.w"]).max(0))
    np.testing.assert_allclose(np.abs(model.weight("a.w")).max(1), expected, rtol=1e-5)
    np.testing.assert_allclose(np.abs(model.weight("b.w")).max(0), expected, rtol=1e-5)


@pytest.mark.parametrize("weights", ["int8 per-tensor", "int8"])
def test_rescaled_channels_are_cured(weights: str) -> None:
    network = chain(1, spread=1.5)
    data = network.batch(16)
    plain = [opened(network).run(data)]

    def sqnr(*techniques) -> float:
        sim = simulator(network, weights=weights)
        sim.apply(*techniques, data=data)
        sim.calibrate(data)
        return output_sqnr(plain, [sim.run(data)])

    assert sqnr() < 15
    assert sqnr(EqualizeCrossLayers()) > 30


def test_transposed_grouped_and_folded() -> None:
    network = upsampler()
    model, batch = opened(network), network.batch(2)
    before = model.run(batch)
    FoldBatchNorms().apply(TechniqueContext(model))
    report = EqualizeCrossLayers(absorb_biases=False).apply(TechniqueContext(model))
    assert report.changed[0].startswith("up1 and up2:")
    assert_same_function(model.run(batch), before)


def test_residual_branches_and_clips_are_left() -> None:
    model = opened(inverted_residual())
    FoldBatchNorms().apply(TechniqueContext(model))
    report = EqualizeCrossLayers(absorb_biases=False).apply(TechniqueContext(model))
    assert report.changed == ()
    assert "several readers" in report.left["project"] or "beside" in report.left["project"]
    assert "Clip" in report.left["expand"]


def test_clips_per_channel_keep_the_function() -> None:
    network = inverted_residual()
    model, batch = opened(network), network.batch(2)
    before = model.run(batch)
    FoldBatchNorms().apply(TechniqueContext(model))
    report = EqualizeCrossLayers(absorb_biases=False, clip="per-channel").apply(TechniqueContext(model))
    assert [text.split(":")[0] for text in report.changed] == ["expand and depthwise", "depthwise and project"]
    assert [node.op for node in model.graph.nodes].count("Min") == 2
    assert_same_function(model.run(batch), before)


def test_clips_become_relu_when_asked() -> None:
    model = opened(inverted_residual())
    FoldBatchNorms().apply(TechniqueContext(model))
    EqualizeCrossLayers(clip="relu").apply(TechniqueContext(model))
    assert sorted(node.op for node in model.graph.nodes if node.op in ("Clip", "Relu")) == ["Clip", "Relu", "Relu"]
    with pytest.raises(FormatError, match="clip is"):
        EqualizeCrossLayers(clip="relu6")  # type: ignore[arg-type]


def test_shared_weights_are_left() -> None:
    model = opened(shared_weights())
    report = EqualizeCrossLayers().apply(TechniqueContext(model))
    assert report.changed == ()
    assert "shared with fc2" in report.left["fc1"]


def test_empty_channels() -> None:
    """Zero rows, zero columns, and an all-zero weight take no factor and stay finite."""
    network = chain(2, spread=0)
    weights = {name: np.array(value) for name, value in network.weights.items()}
    weights["conv0.weight"][0] = 0
    weights["conv1.weight"][:, 1] = 0
    weights["conv2.weight"][:] = 0
    network = Network("empty", network.graph, weights)
    model, batch = opened(network), network.batch(2)
    before = model.run(batch)
    EqualizeCrossLayers().apply(TechniqueContext(model, dataset=Dataset([batch], model.graph)))
    assert all(np.all(np.isfinite(model.weight(name))) for name in model.graph.weights)
    np.testing.assert_allclose(model.run(batch)["logits"], before["logits"], atol=1e-5)
    np.testing.assert_array_equal(model.weight("conv0.weight")[0], 0)


def biased(seed: int = 0) -> Network:
    """Two pointwise convolutions with a batch norm between, some of whose channels lie far above zero."""
    b = NetworkBuilder("biased", seed)
    x = b.input("x", 3, 4, 4)
    x = b.op("Relu", "relu", b.batch_norm("bn", b.conv("first", x, 6, 1, bias=False)))
    b.output("y", b.conv("second", x, 4, 1))
    network = b.build()
    weights = {name: np.array(value) for name, value in network.weights.items()}
    weights["bn.bias"][:3] = [8.0, 12.0, 20.0]
    weights["bn.weight"][:] = 1.0
    with np.errstate(all="ignore"):
        weights["bn.running_mean"][:] = 0
        weights["bn.running_var"][:] = (weights["first.weight"] ** 2).sum(axis=(1, 2, 3))  # of standard normal inputs
    return Network("biased", network.graph, weights)


@pytest.mark.parametrize("source", ["batch norm", "data"])
def test_high_biases_are_absorbed(source: str) -> None:
    network = biased()
    model, batch = opened(network), network.batch(32)
    before = model.run(batch)
    folded = FoldBatchNorms().apply(TechniqueContext(model))
    np.testing.assert_allclose(folded.batch_norms["first"].mean[:3], [8, 12, 20])
    bias = np.array(model.weight("first.bias"))
    if source == "batch norm":
        report = EqualizeCrossLayers().apply(TechniqueContext(model, batch_norms=folded.batch_norms))
    else:
        report = EqualizeCrossLayers().apply(TechniqueContext(model, dataset=Dataset([batch], model.graph)))
    assert report.changed[-1] == "second absorbed the bias of 3 channel(s) of first"
    normal = report.batch_norms["first"]
    reach = normal.mean + 6 * normal.deviation  # of the widest of the three, three deviations above zero, and no less
    np.testing.assert_allclose(reach[:3], 9 * normal.deviation[:3].max(), rtol=1e-6)
    assert np.all(normal.mean[:3] >= 3 * normal.deviation[:3] * (1 - 1e-6))
    assert not np.allclose(model.weight("first.bias")[:3], bias[:3])
    size = np.abs(before["y"]).max()
    moved = np.abs(model.run(batch)["y"] - before["y"]) > 1e-5 * size
    assert moved.mean() < 0.02  # 0.13 % of the values of each channel lie below
    assert EqualizeCrossLayers().apply(TechniqueContext(opened(network))).left  # before folding there is no pair


def test_biases_that_no_range_ends_with_stay() -> None:
    """Another channel reaches further: absorbing would lose values and gain no finer grid."""
    model = opened(biased())
    folded = FoldBatchNorms().apply(TechniqueContext(model))
    normal = folded.batch_norms["first"]
    wide = NormalPerChannel(
        np.where(np.arange(6) == 5, 0.0, normal.mean), np.where(np.arange(6) == 5, 9.0, normal.deviation)
    )
    bias = np.array(model.weight("first.bias"))
    report = EqualizeCrossLayers().apply(TechniqueContext(model, batch_norms={"first": wide}))
    assert not any("absorbed" in text for text in report.changed)
    factor = normal.mean[:3] / report.batch_norms["first"].mean[:3]  # of the equalization
    np.testing.assert_allclose(model.weight("first.bias")[:3], bias[:3] / factor, rtol=1e-6)


def test_no_more_is_absorbed_than_the_range_takes() -> None:
    """Without an activation: -10..4 moves by its mean to -7..7, into which 1..7 fits as it is."""
    s = Sketch(3)
    y = s.node("Linear", s.input("x", "N", 3), s.random("a.w", 2, 3), s.random("a.b", 2), name="a", shape=("N", 2))
    y = s.node("Linear", y, s.random("b.w", 2, 2), s.random("b.b", 2), name="b", shape=("N", 2))
    network = Network("two", canonicalize(s.graph(y)), s.values)
    model = opened(network)
    EqualizeCrossLayers(absorb_biases=False).apply(TechniqueContext(model))
    bias, batch = np.array(model.weight("a.b")), {"x": np.float32([[1, 2, 3], [-1, 0, 1]])}
    before = model.run(batch)
    normal = NormalPerChannel(np.array([-3.0, 4.0]), np.array([7.0, 3.0]) / 6)
    report = EqualizeCrossLayers(sweeps=1).apply(TechniqueContext(model, batch_norms={"a": normal}))
    np.testing.assert_allclose(bias - model.weight("a.b"), [-3.0, 0.0], atol=1e-4)
    np.testing.assert_allclose(report.batch_norms["a"].mean, [0.0, 4.0], atol=1e-3)
    assert_same_function(model.run(batch), before)


def test_what_pads_absorbs_nothing() -> None:
    network = chain(4, spread=0)
    model = opened(network)
    normals = {
        "conv0": NormalPerChannel(np.full(8, 9.0), np.ones(8)),
        "conv1": NormalPerChannel(np.full(8, 9.0), np.ones(8)),
    }
    report = EqualizeCrossLayers().apply(TechniqueContext(model, batch_norms=normals))
    assert "pads with zeros" in report.left["high biases of conv0"]
    assert any(text.startswith("conv2 absorbed the bias of") for text in report.changed)
    assert "neither batch norm nor data" in report.left["high biases of conv2"]


def test_one_sample_and_nothing_to_do() -> None:
    network = chain(5)
    model, batch = opened(network), network.batch(1)
    before = model.run(batch)
    EqualizeCrossLayers().apply(TechniqueContext(model, dataset=Dataset([batch], model.graph)))
    assert np.abs(model.run(batch)["logits"] - before["logits"]).max() < 0.05 * np.abs(before["logits"]).max() + 1e-6
    b = NetworkBuilder("none")
    b.output("y", b.op("Sigmoid", "sigmoid", b.input("x", 4)))
    report = EqualizeCrossLayers().apply(TechniqueContext(opened(b.build())))
    assert report.changed == ()
    assert report.left == {"model": "it has no pair of layers"}
