"""The engine of ReconstructBlocks: parts of graphs, blocks, soft weights, Adam, samples."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from numpy_backend import checked
from technique_networks import chain, opened, simulator

from isobit.encodings import Encoding
from isobit.errors import FormatError, ModelError
from isobit.graph import Graph, between
from isobit.graph_backend import GraphBuilder
from isobit.placement import QuantConfig
from isobit.plugins import registry
from isobit.quantsim import QuantSim
from isobit.techniques import ReconstructBlocks
from isobit.techniques.reconstruction.adam import Adam
from isobit.techniques.reconstruction.block_samples import BlockSamples, KeptSamples, choose_batches, held_back
from isobit.techniques.reconstruction.blocks import find_blocks
from isobit.techniques.reconstruction.soft_weight import SoftWeight
from isobit.techniques.rounding.layers import find_layers


def test_a_part_needs_all_that_it_is_computed_from() -> None:
    graph = opened(chain()).graph
    convs = [node for node in graph.nodes if node.op == "Conv"]
    start, end = convs[1].inputs[0] or "", convs[2].outputs[0]
    part = between(graph, [start], [end])
    assert part.inputs == (start,)
    assert dict(part.outputs) == {end: end}
    assert [node.op for node in part.nodes] == ["Conv", "Relu", "Conv"]
    assert set(part.weights) == {name for node in convs[1:] for name in node.inputs[1:]}
    with pytest.raises(ModelError, match="missing"):
        between(graph, [end], [start])


def test_chains_are_cut_by_layers_and_branches_stay_together() -> None:
    builder, rng = GraphBuilder(), np.random.default_rng(0)
    shape = ("batch", 4)
    mask = builder.input("mask", shape)
    x = builder.input("x", shape)

    def linear(name: str, value: str) -> str:
        builder.scope = name
        weight = builder.constant(rng.standard_normal((4, 4)).astype(np.float32), f"{name}.weight")
        return builder.node("Linear", [value, weight], shape)

    for index in range(4):
        x = builder.node("Relu", [linear(f"chain{index}", x)], shape)
    x = builder.node("Mul", [x, mask], shape)
    branch = linear("second", builder.node("Relu", [linear("first", x)], shape))
    x = builder.node("Mul", [builder.node("Add", [x, branch], shape), mask], shape)
    graph, weights = builder.canonical({"y": linear("last", x)})
    sim = simulator_of(graph, weights)
    layers, left = find_layers(graph, sim.plan)
    assert not left
    blocks, outside = find_blocks(graph, layers, 3)
    assert [[layer.name for layer in block.layers] for block in blocks] == [
        ["chain0", "chain1", "chain2"],
        ["chain3"],
        ["first", "second"],
        ["last"],
    ]
    assert not outside
    assert blocks[2].part.inputs == (*dict.fromkeys(blocks[2].part.inputs),)
    assert "mask" in blocks[2].part.inputs
    assert [node.op for node in blocks[2].part.nodes][-2:] == ["Add", "Mul"]


def simulator_of(graph: Graph, weights: Mapping[str, np.ndarray]) -> QuantSim:
    return QuantSim.of_backend_model(checked(graph, weights), registry().target("default"), QuantConfig())


@pytest.mark.parametrize("spec", ["int3 per-tensor", "uint4 per-channel", "int4 block=2"])
def test_gradients_of_a_soft_weight_are_finite_differences(spec: str) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((3, 4)).astype(np.float32)
    shapes = {"int3 per-tensor": ((), None), "uint4 per-channel": ((3,), 0), "int4 block=2": ((3, 2), 1)}
    shape, axis = shapes[spec]
    scale = rng.uniform(0.2, 0.4, shape)
    encoding = Encoding.of(spec, scale, np.full(shape, 7) if spec.startswith("u") else 0, axis)
    start = np.clip(
        np.rint(weight / encoding.broadcast(weight.shape)[0]) + encoding.broadcast(weight.shape)[1],
        encoding.spec.q_min, encoding.spec.q_max,
    ).astype(np.int64)  # fmt: skip
    soft = SoftWeight(weight, encoding, start)
    width, zero_point = encoding.broadcast(weight.shape)
    away = np.abs(soft.value() - weight) / width  # where it starts: between the integer chosen and the float weight
    chosen = np.abs((start - zero_point) * width - weight) / width
    assert np.all(away <= chosen + 0.01)
    np.testing.assert_array_equal(soft.encoding.fake_quantize(soft.value(hard=True)), soft.value(hard=True))
    factor = rng.standard_normal(weight.shape)
    gradients = soft.gradient(factor.astype(np.float32))
    for name, parameter in soft.parameters.items():
        for index in np.ndindex(parameter.shape):
            old, values = parameter[index], []
            for step in (1e-3, -1e-3):
                parameter[index] = old + step
                values.append(float((soft.value().astype(np.float64) * factor).sum()))
            parameter[index] = old
            assert gradients[name][index] == pytest.approx((values[0] - values[1]) / 2e-3, abs=2e-2), (name, index)


def test_values_settle_a_share_at_a_time_and_for_good() -> None:
    """The nearest to an integer first; a weight in any order of memory."""
    encoding = Encoding.of("int4 per-tensor", 1.0)
    weight = np.asfortranarray(np.array([[0.1, 0.45, 0.6], [2.05, -1.4, 3.5]], np.float32))
    soft = SoftWeight(weight, encoding, np.rint(weight).astype(np.int64))
    soft.settle(1 / 3)
    settled = np.array([[True, False, False], [True, False, False]])
    np.testing.assert_array_equal((soft.h == 0) | (soft.h == 1), settled)
    np.testing.assert_array_equal(soft.gradient(np.ones_like(weight))["place"] == 0, settled)
    soft.parameters["place"] -= 20.0 * np.sign(soft.parameters["place"])  # as Adam's momentum may do
    soft.settle(1 / 3)
    np.testing.assert_array_equal(soft.value()[settled], [0, 2])
    soft.settle(1)
    np.testing.assert_array_equal(soft.value(), soft.value(hard=True))
    np.testing.assert_array_equal(soft.value(), np.rint(soft.value()))


def test_a_value_that_was_rounded_away_lies_between_that_and_its_neighbour() -> None:
    encoding = Encoding.of("int4 per-tensor", 1.0)
    weight = np.array([[0.3, 0.3, 9.0, -9.0, 0.3]], np.float32)
    soft = SoftWeight(weight, encoding, np.array([[2, -1, 7, -8, 0]]))
    np.testing.assert_array_equal(soft.lower, [[1, -1, 6, -8, 0]])
    np.testing.assert_array_equal(soft.value(hard=True), [[2, -1, 7, -8, 0]])


@pytest.mark.parametrize("zero_point", [0, 15])
def test_zeros_of_a_sparse_weight_stay(zero_point: int) -> None:
    """Wherever a descent moves their places, also where the grid ends at zero."""
    encoding = Encoding.of("uint4 per-tensor", 1.0, zero_point)
    sign = 1 if zero_point == 0 else -1
    weight = sign * np.array([[0, 2.3, 0, 4.0]], np.float32)
    soft = SoftWeight(weight, encoding, np.rint(weight).astype(np.int64) + zero_point)
    for place in (-9.0, 9.0):
        soft.parameters["place"][:] = place
        np.testing.assert_array_equal(soft.value()[0, ::2], 0)
    assert not soft.gradient(np.ones_like(weight))["place"][0, ::2].any()
    dense = sign * np.array([[0, 2.3, 1, 4.0, 5]], np.float32)
    loose = SoftWeight(dense, encoding, np.rint(dense).astype(np.int64) + zero_point)
    loose.parameters["place"][:] = 9.0 * sign
    assert loose.value()[0, 0] != 0


def test_adam_finds_the_least_square() -> None:
    parameters, optimizer = {"x": np.array([3.0, -2.0])}, Adam()
    for _ in range(400):
        optimizer.step(parameters, {"x": 2 * (parameters["x"] - [1.0, 1.0])}, {"x": 0.05})
    np.testing.assert_allclose(parameters["x"], 1, atol=1e-2)
    first = {"x": np.array([1.0])}
    Adam().step(first, {"x": np.array([1e-4])}, {"x": 0.1})
    assert first["x"][0] == pytest.approx(0.9, abs=1e-4)  # the first step is the rate, whatever the gradient's size


def test_samples_are_the_same_for_all_tensors_and_bounded() -> None:
    graph = opened(chain()).graph
    name = graph.inputs[0]
    data = [{name: np.full((4, 4, 6, 6), index, np.float32)} for index in range(20)]
    chosen = choose_batches(data, graph, 16)
    assert 1 <= len(chosen) <= 4
    assert len({float(batch[name].flat[0]) for batch in chosen}) == len(chosen)
    assert len(choose_batches([{name: np.zeros((64, 4, 6, 6), np.float32)}], graph, 16)) == 1
    large, small = KeptSamples(1 << 20), KeptSamples(4 * 40)
    for index in range(10):
        large.update(np.full((8, 2), index, np.float32))
        small.update(np.full((8, 4), index, np.float32))
    assert len(large.kept) == 80
    assert 1 <= len(small.kept) <= 10
    samples = BlockSamples.of({"a": large}, {"b": small})
    assert len(samples) == len(small.kept)
    given, wanted = samples.batch(samples.alike[0][:3])
    np.testing.assert_array_equal(given["a"][:, 0], wanted["b"][:, 0])
    train, judges = samples.split(4)
    assert len(train) + len(judges) == len(samples)
    held = [batch[name][:, 0, 0, 0] for batch in held_back(data[:6], graph, 8)]
    np.testing.assert_array_equal(np.concatenate(held), [1, 3, 5])  # samples 7, 15 and 23 of four each
    assert not {n for some in train.alike for n in some} & {n for some in judges.alike for n in some}


def test_without_gradients_it_says_what_to_do() -> None:
    sim = simulator(chain())
    with pytest.raises(ModelError, match=r"numpy backend has none.*AdaRound\(sequential=True\)"):
        sim.apply(ReconstructBlocks(), data=[np.zeros((4, 4, 6, 6), np.float32)])
    with pytest.raises(FormatError, match="steps is at least 1"):
        ReconstructBlocks(steps=0)
