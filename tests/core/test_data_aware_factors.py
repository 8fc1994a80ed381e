"""Factors by the moments of inputs: against brute force on the layer's outputs."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from technique_networks import opened

from isobit.backend.checked_model import CheckedModel
from isobit.data import Dataset
from isobit.edits.edit import SetWeights
from isobit.techniques import SpatialSvd, Tucker2, WeightSvd
from isobit.techniques.context import TechniqueContext
from isobit.techniques.low_rank.input_moments import InputMoments
from isobit.testing.networks import Network, NetworkBuilder

RANKS: dict[type[Any], Any] = {SpatialSvd: 4, WeightSvd: 3, Tucker2: [3, 4]}


def convolution(groups: int = 1) -> Network:
    b = NetworkBuilder("convolution")
    x = b.input("x", 6, 9, 9)
    weight, bias = b.random_weight("weight", 8, 6 // groups, 3, 3), b.random_weight("bias", 8)
    settings = {"kernel_shape": (3, 3), "strides": (1, 2), "dilations": (1, 1), "pads": (1, 0, 1, 1)}
    b.output("y", b.op("Conv", "conv", x, weight, bias, group=groups, **settings))
    return b.build()


def correlated(samples: int = 40, dead: int | None = None) -> NDArray[np.float32]:
    """Channels that are mixtures of few, of unequal power and not centred; one may never change."""
    rng = np.random.default_rng(1)
    few = rng.normal(size=(samples, 3, 9, 9)).cumsum(axis=3)
    mixed = np.einsum("ck,nkhw->nchw", rng.normal(size=(6, 3)), few) + 0.2 * rng.normal(size=(samples, 6, 9, 9))
    mixed = mixed * np.array([4, 2, 1, 1, 0.5, 0.25])[None, :, None, None] + 1.5
    if dead is not None:
        mixed[:, dead] = 0.0
    return mixed.astype(np.float32)


def context(model: CheckedModel, x: NDArray[np.float32]) -> TechniqueContext:
    return TechniqueContext(model, dataset=Dataset([{"x": x}], model.graph))


def error(model: CheckedModel, x: NDArray[np.float32], before: NDArray[np.float32]) -> float:
    """The error of the output as a share of its power about its mean, by running the model."""
    power = np.square(before - before.mean(axis=(0, 2, 3), keepdims=True, dtype=np.float64)).mean()
    return float(np.square(model.run({"x": x})["y"].astype(np.float64) - before).mean() / power)


@pytest.mark.parametrize("technique", [SpatialSvd, WeightSvd, Tucker2])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dead", [None, 1])
def test_the_error_of_the_output_is_below_that_of_plain_factors(technique, groups: int, dead: int | None) -> None:
    x = correlated(dead=dead)
    ranks = {SpatialSvd: 4, WeightSvd: 2, Tucker2: [2, 3]}[technique] if groups > 1 else RANKS[technique]
    errors = []
    for settings in ({}, {"data_aware": False}):
        model = opened(convolution(groups))
        before = model.run({"x": x})["y"]
        report = technique(1.0, {"conv": ranks}, **settings).apply(context(model, x))
        errors.append(error(model, x, before))
    assert errors[0] < 0.8 * errors[1]
    assert np.isfinite(errors).all()
    assert "error of the output" not in report.changed[0]


@pytest.mark.parametrize("technique", [SpatialSvd, WeightSvd, Tucker2])
def test_the_error_that_is_told_is_that_of_the_outputs(technique) -> None:
    """Of what candidates list, of what the report says, and of the model that is run."""
    x = correlated(200)
    model = opened(convolution())
    before = model.run({"x": x})["y"]
    (candidate,) = technique(0.5).candidates(context(model, x))
    listed = [choice for choice in candidate.choices if choice.size == 3]
    assert candidate.from_data
    assert [c.cost.macs for c in candidate.choices] == sorted((c.cost.macs for c in candidate.choices), reverse=True)
    choice = listed[0]
    report = technique().chosen({"conv": choice}).apply(context(model, x))
    told = float(report.changed[0].rpartition("error of the output ")[2].split()[0])
    assert told == pytest.approx(choice.error, rel=1e-2)
    assert error(model, x, before) == pytest.approx(choice.error, rel=0.05)


def test_no_pair_with_so_few_outputs_does_better() -> None:
    """The best reduced-rank regression, by the singular values of the outputs themselves."""
    x = correlated(100)
    model = opened(convolution())
    before = model.run({"x": x})["y"].astype(np.float64)
    WeightSvd(1.0, {"conv": 3}).apply(context(model, x))
    outputs = before.transpose(0, 2, 3, 1).reshape(-1, 8)
    outputs = outputs - outputs.mean(axis=0)
    singular = np.square(np.linalg.svd(outputs, compute_uv=False))
    assert error(model, x, before) == pytest.approx(singular[3:].sum() / singular.sum(), rel=1e-3)


def test_the_second_layer_is_the_least_squares_one() -> None:
    """Of all horizontal filters on the vertical ones that were found, by lstsq on the windows of their output."""
    x = correlated(60)
    model = opened(convolution())
    before = model.run({"x": x})["y"].astype(np.float64)
    SpatialSvd(1.0, {"conv": 4}).apply(context(model, x))
    vertical = model.weight(model.graph.nodes[0].inputs[1]).astype(np.float64)[:, :, :, 0]
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (0, 1)))
    features = sum(np.einsum("rc,nchw->nrhw", vertical[:, :, i], padded[:, :, i : i + 9]) for i in range(3))
    windows = np.stack([features[:, :, :, j : j + 8 : 2] for j in range(3)], axis=-1)  # (n, r, h, w, tap)
    rows = np.pad(windows.transpose(0, 2, 3, 1, 4).reshape(-1, 12), ((0, 0), (0, 1)), constant_values=1.0)
    target = before.transpose(0, 2, 3, 1).reshape(-1, 8)
    best = target - rows @ np.linalg.lstsq(rows, target, rcond=None)[0]
    power = np.square(target - target.mean(axis=0)).sum()
    assert error(model, x, before) == pytest.approx(np.square(best).sum() / power, rel=1e-2)


def test_the_layers_of_tucker_are_those_of_its_formula() -> None:
    """Read back and multiplied out by hand: the same function as the weight that they stand for."""
    x = correlated()
    model = opened(convolution())
    Tucker2(1.0, {"conv": [3, 4]}).apply(context(model, x))
    first, core, last = (model.weight(node.inputs[1]).astype(np.float64) for node in model.graph.nodes)
    assert (first.shape, core.shape, last.shape) == ((3, 6, 1, 1), (4, 3, 3, 3), (8, 4, 1, 1))
    whole = np.zeros((8, 6, 3, 3))
    for o, s, r, c in product(range(8), range(4), range(3), range(6)):
        whole[o, c] += last[o, s, 0, 0] * core[s, r] * first[r, c, 0, 0]
    direct = opened(convolution())
    bias = model.weight(model.graph.nodes[-1].inputs[2])
    direct.edit([SetWeights({"weight": whole.astype(np.float32), "bias": bias})])
    np.testing.assert_allclose(model.run({"x": x})["y"], direct.run({"x": x})["y"], atol=2e-3)


def test_few_rows_do_no_harm() -> None:
    """Data of one sample and one position a column fits what it shows, and stays near the weights elsewhere."""
    model = opened(convolution())
    fresh = correlated(80)[40:]
    before = model.run({"x": fresh})["y"]
    SpatialSvd(1.0, {"conv": 6}).apply(context(model, correlated(1)))
    plain = opened(convolution())
    SpatialSvd(1.0, {"conv": 6}, data_aware=False).apply(context(plain, fresh))
    assert error(model, fresh, before) < 3 * error(plain, fresh, before)


def test_rows_serve_as_well_as_their_moments() -> None:
    """Of fewer rows than columns the rows are kept; of more, their second moments: all products are the same."""
    rng = np.random.default_rng(3)
    values = rng.normal(size=(700, 2, 12))
    floor = np.array([0.1, 0.2])
    second = np.einsum("ngi,ngj->gij", values, values) / 700 + floor[:, None, None] * np.eye(12)
    by_rows = InputMoments(None, values.astype(np.float32), floor, np.zeros((2, 12)))
    by_sums = InputMoments(second, None, floor, np.zeros((2, 12)))
    matrix, basis = rng.normal(size=(2, 5, 12)), rng.normal(size=(2, 3, 4))
    whole = np.einsum("grc,ij->gricj", basis, np.eye(3)).reshape(2, 9, 12)  # the basis at every inner column
    for found, exact in (
        ("outputs", matrix @ second @ matrix.swapaxes(1, 2)),
        ("of_features", whole @ second @ whole.swapaxes(1, 2)),
        ("with_features", matrix @ second @ whole.swapaxes(1, 2)),
        ("marginal", np.einsum("gajbj->gab", second.reshape(2, 4, 3, 4, 3))),
    ):
        arguments = {"outputs": (matrix,), "of_features": (basis,), "with_features": (matrix, basis), "marginal": (4,)}
        for moments in (by_rows, by_sums):
            np.testing.assert_allclose(getattr(moments, found)(*arguments[found]), exact, rtol=1e-5, atol=1e-5)
    power = np.einsum("gni,gij,gnj->", matrix, second, matrix)
    for moments in (by_rows, by_sums):
        for factor in (1, 2, 1):  # a kept figure is of the very values
            assert moments.power(factor * matrix) == pytest.approx(factor**2 * power, rel=1e-5)
