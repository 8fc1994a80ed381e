"""Low-rank factors of layers: against a brute-force sum, and what is left alone."""

from __future__ import annotations

from dataclasses import asdict
from itertools import product

import numpy as np
import pytest
from technique_networks import assert_same_function, opened

from isobit.budget import Cost, layer_costs
from isobit.data import Dataset
from isobit.errors import FormatError
from isobit.plugins import registry
from isobit.techniques import SpatialSvd, Tucker2, WeightSvd
from isobit.techniques.context import TechniqueContext
from isobit.techniques.low_rank.factorise import NO_DATA
from isobit.testing.networks import NETWORKS, Network, NetworkBuilder


def convolution(stride: int, dilation: int, groups: int = 1) -> Network:
    """One convolution of 3 x 5 with unequal pads."""
    b = NetworkBuilder("convolution")
    x = b.input("x", 6, 11, 12)
    weight, bias = b.random_weight("weight", 6, 6 // groups, 3, 5), b.random_weight("bias", 6)
    settings = {"kernel_shape": (3, 5), "strides": (stride, 1), "dilations": (1, dilation), "pads": (1, 2, 0, 1)}
    b.output("y", b.op("Conv", "conv", x, weight, bias, group=groups, **settings))
    return b.build()


@pytest.mark.parametrize("technique", [SpatialSvd, WeightSvd, Tucker2])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("with_data", [False, True])
def test_all_ranks_keep_the_function(technique, stride: int, dilation: int, groups: int, with_data: bool) -> None:
    network = convolution(stride, dilation, groups)
    model, batch = opened(network), network.batch(2)
    before = model.run(batch)
    full = {SpatialSvd: {1: 18, 3: 6}, WeightSvd: {1: 6, 3: 2}, Tucker2: {1: [6, 6], 3: [2, 2]}}[technique][groups]
    dataset = Dataset([network.batch(5)], model.graph) if with_data else None
    report = technique(1.0, {"conv": full}).apply(TechniqueContext(model, dataset=dataset))
    assert [node.op for node in model.graph.nodes] == ["Conv"] * (1 if technique is Tucker2 else 2)
    assert report.changed[0].startswith("conv: rank ")
    assert_same_function(model.run(batch), before)


def transposed(groups: int = 1) -> Network:
    """One transposed convolution of 3 x 4 with strides, crops of its own and a row more than the crops leave."""
    b = NetworkBuilder("transposed")
    x = b.input("x", 6, 5, 4)
    weight, bias = b.random_weight("weight", 8, 6 // groups, 3, 4), b.random_weight("bias", 8)
    windows = {"kernel_shape": (3, 4), "strides": (2, 3), "dilations": (1, 1), "pads": (1, 0, 1, 0)}
    b.output("y", b.op("ConvTranspose", "up", x, weight, bias, group=groups, output_padding=(1, 0), **windows))
    return b.build()


def volume() -> Network:
    """A convolution over time, height and width."""
    b = NetworkBuilder("volume")
    x = b.input("x", 4, 6, 7, 8)
    weight, bias = b.random_weight("weight", 6, 4, 3, 3, 2), b.random_weight("bias", 6)
    windows = {"kernel_shape": (3, 3, 2), "strides": (2, 1, 2), "dilations": (1, 2, 1), "pads": (1, 2, 0, 0, 1, 1)}
    b.output("y", b.op("Conv", "conv", x, weight, bias, group=1, **windows))
    return b.build()


def sequence() -> Network:
    """A convolution over time."""
    b = NetworkBuilder("sequence")
    x = b.input("x", 6, 15)
    windows = {"kernel_shape": (5,), "strides": (2,), "dilations": (1,), "pads": (2, 1)}
    b.output("y", b.op("Conv", "conv", x, b.random_weight("weight", 8, 6, 5), b.random_weight("bias", 8), **windows))
    return b.build()


@pytest.mark.parametrize(
    ("network", "technique", "ranks"),
    [
        (transposed(), SpatialSvd, [18]),
        (transposed(2), SpatialSvd, [9]),
        (transposed(), WeightSvd, [8]),
        (transposed(2), WeightSvd, [4]),
        (transposed(), Tucker2, [6, 7]),
        (transposed(2), Tucker2, [2, 4]),
        (volume(), SpatialSvd, [12]),
        (volume(), WeightSvd, [6]),
        (volume(), Tucker2, [4, 5]),
        (sequence(), WeightSvd, [8]),
        (sequence(), Tucker2, [5, 8]),
    ],
)
@pytest.mark.parametrize("with_data", [False, True])
def test_transposed_and_other_dimensions(network: Network, technique, ranks: list[int], with_data: bool) -> None:
    """Full ranks are the same function, others the nearest; what is told of costs and errors is that of the graph."""
    batch, data = network.batch(2), network.batch(60, 1)
    model, (layer,) = opened(network), network.graph.nodes
    before = model.run(batch)
    context = TechniqueContext(model, dataset=Dataset([data], model.graph) if with_data else None)
    asked = {layer.name: ranks if technique is Tucker2 else ranks[0]}
    technique(1.0, asked).apply(context)
    last = model.graph.nodes[-1].op
    assert last == ("Conv" if technique is WeightSvd or ranks[-1] == 7 else layer.op)
    loses = technique is Tucker2 and ranks not in ([6, 8],)
    for name, value in model.run(batch).items():
        error = np.square(value - before[name]).sum() / np.square(before[name]).sum()
        assert error < (0.5 if loses else 1e-9)

    whole = opened(network)
    context = TechniqueContext(whole, dataset=Dataset([data], whole.graph) if with_data else None)
    table = registry().target("onnxruntime-cpu").costs[0]
    (candidate,) = technique(0.5).candidates(context, table=table)
    choice = candidate.choices[len(candidate.choices) // 2]
    run_before = whole.run(data)["y"].astype(np.float64)
    technique().chosen({layer.name: choice}).apply(context)
    cost = Cost.sum(layer_costs(whole.graph, table).values())
    assert asdict(cost) == pytest.approx(asdict(choice.cost))
    if with_data:
        power = np.square(run_before - run_before.mean(axis=(0, *range(2, run_before.ndim)), keepdims=True)).mean()
        lost = np.square(whole.run(data)["y"] - run_before).mean()
        assert lost / power == pytest.approx(choice.error, rel=0.1)


@pytest.mark.parametrize("technique", [SpatialSvd, WeightSvd])
def test_no_weight_of_that_rank_is_nearer(technique) -> None:
    """The product of the factors has the error that Eckart and Young give: the singular values that are left out."""
    network = convolution(1, 1)
    model, rank = opened(network), 3
    technique(ranks={"conv": rank}).apply(TechniqueContext(model))
    first, second = (model.weight(node.inputs[1]) for node in model.graph.nodes)
    original = network.weights["weight"].astype(np.float64)
    product_of = np.zeros(original.shape)
    for o, r, i, y, x in product(range(6), range(rank), range(6), range(3), range(5)):
        if technique is SpatialSvd:
            product_of[o, i, y, x] += second[o, r, 0, x] * first[r, i, y, 0]
        else:
            product_of[o, i, y, x] += second[o, r, 0, 0] * first[r, i, y, x]
    rows = (0, 3, 1, 2) if technique is SpatialSvd else (0, 1, 2, 3)
    matrix = original.transpose(rows).reshape(6 * (5 if technique is SpatialSvd else 1), -1)
    left_out = np.linalg.eigvalsh(matrix @ matrix.T)[::-1][rank:].clip(0).sum()
    assert np.square(product_of - original).sum() == pytest.approx(left_out, rel=1e-4)


def test_the_rank_follows_from_the_share_of_multiplications() -> None:
    """Counted by hand: 6 x 6 x 3 x 5 at 10 x 11 positions; 6 x 3 a rank at 10 x 12, and 6 x 5 at 10 x 11."""
    network = convolution(1, 1)
    before, a_rank = 6 * 6 * 3 * 5 * 110, 18 * 120 + 30 * 110
    model = opened(network)
    report = SpatialSvd(0.5).apply(TechniqueContext(model))
    rank = int(0.5 * before / a_rank)
    assert report.changed == (f"conv: rank {rank} of 18, {rank * a_rank / before:.1%} of its multiply-accumulates",)
    assert report.notes == (
        f"multiply-accumulates of all layers: {rank * a_rank / before:.1%} of {before:.4g} a sample",
        NO_DATA,
    )
    assert model.weight(model.graph.nodes[0].inputs[1]).shape == (rank, 6, 3, 1)


def test_linear_layers_are_split_over_their_inputs() -> None:
    model = opened(NETWORKS["two_inputs"]())
    report = WeightSvd(0.7).apply(TechniqueContext(model))
    assert [text.partition(":")[0] for text in report.changed] == ["fc_left", "fc_right", "fc_joined", "fc_score"]
    joined = [node for node in model.graph.nodes if node.name.startswith("fc_joined")]
    assert [model.weight(node.inputs[1]).shape for node in joined] == [(4, 16), (12, 4)]  # 0.7 * 192 / 28
    assert [node.input(2) for node in joined] == [None, "fc_joined.bias"]


def test_what_is_left_alone_says_why() -> None:
    shared = WeightSvd(0.9).apply(TechniqueContext(opened(NETWORKS["shared_weights"]())))
    assert "shared with" in shared.left["fc1"]
    grouped = SpatialSvd().apply(TechniqueContext(opened(NETWORKS["inverted_residual"]())))
    assert any(reason == "its groups are of one channel" for reason in grouped.left.values())
    assert any(reason == "its kernel is one row or column" for reason in grouped.left.values())
    model = opened(convolution(1, 1))
    report = SpatialSvd(0.01).apply(TechniqueContext(model))
    assert report.left == {"conv": "one rank costs more than 1% of its multiply-accumulates"}
    assert len(model.graph.nodes) == 1


def test_settings() -> None:
    with pytest.raises(FormatError, match="SpatialSvd: keep must be above 0 and at most 1, not 1.5"):
        SpatialSvd(1.5)
    with pytest.raises(FormatError, match="WeightSvd: ranks names 'other', which is no Conv, ConvTranspose or Linear"):
        WeightSvd(ranks={"other": 1}).apply(TechniqueContext(opened(convolution(1, 1))))
    with pytest.raises(FormatError, match="rank 7 of 'conv' is not in 1 to 6"):
        WeightSvd(ranks={"conv": 7}).apply(TechniqueContext(opened(convolution(1, 1))))
    with pytest.raises(FormatError, match="'fc1' cannot be split: the weight of fc1 is shared"):
        WeightSvd(ranks={"fc1": 2}).apply(TechniqueContext(opened(NETWORKS["shared_weights"]())))
