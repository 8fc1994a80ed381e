"""The solvers: against brute force, against each other, on every granularity, and on degenerate layers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isobit.encodings import QuantSpec, encode_weight
from isobit.graph import Weight
from isobit.placement import Placement
from isobit.statistics import Gram, Patches, Rows
from isobit.techniques import GPTQ, AdaRound, SequentialMse
from isobit.techniques.rounding import Grid, Objective, coordinate_descent, fitted_scale, gptq, search_scale
from isobit.techniques.rounding.layers import Layer
from isobit.techniques.rounding.problem import Problem


def layer(seed=0, outputs=6, columns=24, count=200, correlated=True):
    """A weight (outputs, columns), correlated inputs of two models, and their Gram."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((outputs, columns)).astype(np.float32)
    patches = Patches("Linear", weight.shape)
    mix = rng.standard_normal((columns, columns)) if correlated else np.eye(columns)
    r = (rng.standard_normal((count, columns)) @ mix + 0.5).astype(np.float32)
    x = (r + 0.1 * rng.standard_normal(r.shape)).astype(np.float32)
    rows = []
    for data in (x, r):
        rows.append(Rows(patches))
        rows[-1].update(data)
    return weight, patches, x, r, Gram.of(*rows)


def placement_of(spec):
    return Placement(Weight("w"), QuantSpec.parse(spec), "weight", channel_axis=0, block_axis=1)


def min_max(weight, spec):
    return encode_weight(weight, QuantSpec.parse(spec), channel_axis=0, block_axis=1)


def test_objective_is_the_output_error():
    """Without damping: the mean squared difference of outputs, whatever the weight."""
    weight, patches, x, r, gram = layer()
    objective = Objective.of(patches.matrix(weight), gram, damping=0)
    other = np.round(weight * 2) / 2
    expected = np.square(x.astype(np.float64) @ other.T - r.astype(np.float64) @ weight.T).mean(axis=0)
    np.testing.assert_allclose(objective.error(patches.matrix(other))[0], expected, rtol=1e-9)
    best = np.linalg.lstsq(x.astype(np.float64), r.astype(np.float64) @ weight.T)[0].T
    np.testing.assert_allclose(objective.target()[0], best, atol=1e-8)


@pytest.mark.parametrize("columns", [24, 300])
def test_an_objective_toward_another_weight_counts_what_no_weight_can_avoid(columns):
    """However wide a layer is, the error is that of the curvature about the target, and the least one."""
    weight, patches, _, _, gram = layer(columns=columns)
    rng = np.random.default_rng(0)
    objective = Objective.of(patches.matrix(weight), gram)
    target = patches.matrix(weight) + 0.1 * rng.standard_normal((1, *weight.shape))
    least = rng.uniform(1, 2, target.shape[:2])
    other = np.round(patches.matrix(weight) * 2) / 2
    step = other - target
    expected = ((step @ objective.hessian) * step).sum(axis=-1) + least
    np.testing.assert_allclose(
        Objective.toward(target, least, objective.shape, objective.damping).error(other), expected, rtol=1e-4
    )


def test_the_search_of_ranges_goes_row_by_row():
    """A row alone gets the scales that it gets among others."""
    weight, patches, _, _, gram = layer(columns=64)
    objective, placement = Objective.of(patches.matrix(weight), gram), placement_of("int3 block=16")
    chosen = search_scale(weight, placement, patches, objective)
    for row in range(len(weight)):
        some = slice(row, row + 1)
        alone = search_scale(weight[some], placement, Patches("Linear", (1, 64)), objective.outputs(some))
        np.testing.assert_array_equal(alone.scale, chosen.scale[some])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000))
def test_pairs_end_in_a_minimum_of_single_and_pair_moves(seed):
    """No single weight at any level, and no pair by one level each, does better: by trying them all."""
    weight, patches, *_, gram = layer(seed, outputs=2, columns=6)
    objective, encoding = Objective.of(patches.matrix(weight), gram), min_max(weight, "int3 per-channel")
    grid = Grid.of(encoding, patches)
    integers = coordinate_descent(objective, grid, grid.nearest(patches.matrix(weight)), sweeps=100)
    error = objective.error(grid.values(integers))[0]
    for o, (i, j) in itertools.product(range(2), itertools.combinations(range(6), 2)):
        for step_i, step_j in itertools.product((-1, 0, 1), repeat=2):
            tried = integers.copy()
            tried[0, o, i] += step_i
            tried[0, o, j] += step_j
            if grid.q_min <= tried.min() and tried.max() <= grid.q_max:
                assert objective.error(grid.values(tried))[0, o] >= error[o] * (1 - 1e-6)


def test_coordinate_descent_finds_most_optima():
    """Against every rounding of small layers: at least half of the global optima, and all within a tenth of it."""
    hits, ratios = 0, []
    levels = np.array(list(itertools.product(range(-2, 2), repeat=5)), np.float64)
    for seed in range(30):
        weight, patches, *_, gram = layer(seed, outputs=1, columns=5)
        objective, grid = (
            Objective.of(patches.matrix(weight), gram),
            Grid.of(min_max(weight, "int2 per-channel"), patches),
        )
        best = objective.error(grid.values(levels[None]))
        start = gptq(objective, grid)
        error = objective.error(grid.values(coordinate_descent(objective, grid, start)))[0, 0]
        ratios.append(error / best.min())
        hits += ratios[-1] < 1 + 1e-6
    assert hits >= 15
    assert np.median(ratios) < 1.1


def reference_gptq(weight, hessian, encoding):
    """Algorithm 1 of Frantar et al. as written: the inverse is downdated column by column; no Cholesky, no blocks."""
    w, inverse, order = weight.astype(np.float64).copy(), np.linalg.inv(hessian), list(range(len(hessian)))
    scale = encoding.scale.astype(np.float64)
    for _ in range(len(hessian)):
        j, rest = order[0], order[1:]
        q = np.clip(np.rint(w[:, j] / scale), encoding.spec.q_min, encoding.spec.q_max) * scale
        error = (w[:, j] - q) / inverse[0, 0]
        w[:, j] = q
        w[:, rest] -= error[:, None] * inverse[0, 1:]
        inverse = inverse[1:, 1:] - np.outer(inverse[1:, 0], inverse[0, 1:]) / inverse[0, 0]
        order = rest
    return w


@pytest.mark.parametrize("columns", [24, 300])
def test_gptq_is_the_algorithm_of_the_paper(columns):
    """Blocks and Cholesky change nothing; 300 columns are three blocks."""
    rng = np.random.default_rng(0)
    weight, patches, *_ = layer(columns=columns)
    rows = Rows(patches)
    rows.update(rng.standard_normal((1000, columns)).astype(np.float32) @ rng.uniform(0, 1, (columns, columns)))
    objective = Objective.of(patches.matrix(weight), Gram.of(rows))
    encoding = min_max(weight, "int4 per-channel")
    grid = Grid.of(encoding, patches)
    rounded = grid.values(gptq(objective, grid, activation_order=False))[0]
    np.testing.assert_allclose(rounded, reference_gptq(weight, objective.hessian[0], encoding), atol=1e-9)


@pytest.mark.parametrize(
    "spec", ["int4 per-tensor", "int4 per-channel", "uint3 per-channel", "int4 block=8", "int4 lpbq=8"]
)
def test_each_step_is_better(spec):
    """Nearest, searched scales, feedback, descent, fitted scales: the error falls, on every granularity."""
    weight, patches, *_, gram = layer(columns=32, outputs=8)
    matrix, placement = patches.matrix(weight), placement_of(spec)
    objective = Objective.of(matrix, gram)
    plain = Grid.of(min_max(weight, spec), patches)
    encoding = search_scale(weight, placement, patches, objective)
    assert encoding.spec == min_max(weight, spec).spec
    grid = Grid.of(encoding, patches)
    start = gptq(objective, grid)
    moved = coordinate_descent(objective, grid, start)
    refitted = fitted_scale(encoding, moved, placement, patches, objective)
    weights = [
        plain.values(plain.nearest(matrix)),
        grid.values(grid.nearest(matrix)),
        grid.values(start),
        grid.values(moved),
        Grid.of(refitted, patches).values(moved),
    ]
    errors = [objective.error(w).sum() for w in weights]
    plainly, searched, fed_back, descended, fitted = errors
    assert searched <= plainly
    assert fed_back < plainly
    assert fitted * (1 - 1e-6) <= descended < min(searched, fed_back)
    assert fitted < 0.7 * plainly
    integers = np.asarray(moved)
    assert integers.min() >= encoding.spec.q_min
    assert integers.max() <= encoding.spec.q_max
    np.testing.assert_array_equal(
        encoding.quantize(encoding.dequantize(moved.reshape(weight.shape))), moved.reshape(weight.shape)
    )


def test_techniques_in_order_of_their_output_error():
    """Median over layers: nearest > SequentialMse > GPTQ >= AdaRound, measured on the rows without Gram or damping."""
    errors = []
    for seed in range(5):
        weight, patches, x, *_ = layer(seed, outputs=16, columns=48, count=600)
        rows = Rows(patches)
        rows.update(x)
        objective = Objective.of(patches.matrix(weight), Gram.of(rows))
        problem = Problem(Layer("w", placement_of("int4 per-channel"), {"y": patches}), weight, objective)
        rounded = [min_max(weight, "int4 per-channel").fake_quantize(weight)]
        for technique in (SequentialMse(), GPTQ(), AdaRound()):
            integers, encoding = technique._solve(problem)
            rounded.append(encoding.dequantize(integers.reshape(weight.shape)))
        power = np.square(x @ weight.T).sum()
        errors.append([np.square((x - x.mean(0)) @ (w - weight).T).sum() / power for w in rounded])
    nearest, searched, fed_back, descended = np.median(errors, axis=0)
    assert nearest > searched > fed_back >= descended


def test_search_takes_the_best_candidate():
    """Each channel's scale is the one, of all candidates, whose rounded outputs err least."""
    weight, patches, x, r, gram = layer()
    objective = Objective.of(patches.matrix(weight), gram, damping=0)
    searched = search_scale(weight, placement_of("int3 per-channel"), patches, objective, candidates=10)
    for o in range(len(weight)):
        errors = {}
        for k in range(1, 11):
            tried = encode_weight(weight * np.float32(k / 10), QuantSpec.parse("int3 per-channel"), channel_axis=0)
            rounded = tried.fake_quantize(weight)[o].astype(np.float64)
            errors[float(tried.scale[o])] = np.square(x @ rounded - r @ weight[o].astype(np.float64)).mean()
        assert float(searched.scale[o]) == min(errors, key=errors.__getitem__)


def test_fitted_scale_is_least_squares():
    """Per channel and per block, against a solver of least squares on the rows themselves."""
    weight, patches, x, r, gram = layer()
    objective = Objective.of(patches.matrix(weight), gram, damping=0)
    expected = r.astype(np.float64) @ weight.T
    for spec, blocks in (("int4 per-channel", 1), ("int4 block=8", 3)):
        encoding = min_max(weight, spec)
        integers = Grid.of(encoding, patches).nearest(patches.matrix(weight))
        fitted = fitted_scale(encoding, integers, placement_of(spec), patches, objective)
        for o in range(len(weight)):
            parts = (x * integers[0, o]).reshape(len(x), blocks, -1).sum(axis=2)
            best = np.linalg.lstsq(parts.astype(np.float64), expected[:, o])[0]
            np.testing.assert_allclose(fitted.scale.reshape(len(weight), -1)[o], best, rtol=2**-11)


@pytest.mark.parametrize("case", ["never fires", "one row", "zero weight", "one dead column"])
def test_degenerate_layers(case):
    """Finite results, never worse than nearest; what the data says nothing of is rounded to nearest."""
    weight, patches, x, _, _ = layer()
    x = x.copy()
    if case == "never fires":
        x[:] = 0
    elif case == "one row":
        x = x[:1]
    elif case == "zero weight":
        weight[:] = 0
    else:
        x[:, 3] = 0
    rows = Rows(patches)
    rows.update(x)
    matrix, placement = patches.matrix(weight), placement_of("int4 per-channel")
    objective = Objective.of(matrix, Gram.of(rows))
    grid = Grid.of(min_max(weight, "int4 per-channel"), patches)
    nearest = grid.nearest(matrix)
    searched = search_scale(weight, placement, patches, objective)
    for integers in (gptq(objective, grid), coordinate_descent(objective, grid, nearest)):
        assert np.all(np.isfinite(integers))
        assert np.all(np.isfinite(fitted_scale(searched, integers, placement, patches, objective).scale))
        if case in ("never fires", "zero weight"):
            np.testing.assert_array_equal(integers, nearest)
        if case == "one dead column":
            np.testing.assert_array_equal(integers[..., 3], nearest[..., 3])
