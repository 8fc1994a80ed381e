"""Low-rank factors of layers: against a brute-force sum, and what is left alone."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from technique_networks import assert_same_function, opened

from isobit.data import Dataset
from isobit.errors import FormatError
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
    with pytest.raises(FormatError, match="WeightSvd: ranks names 'other', which is no Conv or Linear"):
        WeightSvd(ranks={"other": 1}).apply(TechniqueContext(opened(convolution(1, 1))))
    with pytest.raises(FormatError, match="rank 7 of 'conv' is not in 1 to 6"):
        WeightSvd(ranks={"conv": 7}).apply(TechniqueContext(opened(convolution(1, 1))))
    with pytest.raises(FormatError, match="'fc1' cannot be split: the weight of fc1 is shared"):
        WeightSvd(ranks={"fc1": 2}).apply(TechniqueContext(opened(NETWORKS["shared_weights"]())))
