"""Errors of groups that add up or cancel, against sums of the errors themselves."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from technique_networks import chain, simulator

from isobit.analysis.measure_errors import copies, measure_errors
from isobit.quantsim.judging.judge import Judge
from isobit.search.groups import Groups
from isobit.search.noise import alone as alone_module
from isobit.search.noise.sensitivity import _by_group


def test_two_groups_have_what_the_sum_of_their_errors_has(monkeypatch) -> None:
    """Energy of a sum, by NumPy, is that of the groups and twice each product; what is square to all is left out."""
    monkeypatch.setattr(alone_module, "_TAKEN", 1.0)
    rng = np.random.default_rng(0)
    common = rng.standard_normal((6, 400))
    errors = np.stack([common, -0.8 * common, common + rng.standard_normal((6, 400)), rng.standard_normal((6, 400))])
    noise = np.square(errors).sum(2).mean(1)
    crossed = alone_module._crossed(noise, {index: [rows.astype(np.float32)] for index, rows in enumerate(errors)})
    assert set(crossed) == {(0, 1), (0, 2), (1, 2)}
    for chosen in combinations(range(4), 2):
        whole = float(np.square(errors[list(chosen)].sum(0)).sum(1).mean())
        found = noise[list(chosen)].sum() + crossed.get(chosen, 0.0)
        assert found == pytest.approx(whole, rel=0.1, abs=0.02 * noise.sum())
    assert alone_module._crossed(noise, {index: [rows[:1]] for index, rows in enumerate(errors)}) == {}


def test_runs_of_groups_take_a_few_passes() -> None:
    """On the first samples alone, at the distance from all of them that the whole simulator has."""
    network = chain(3, spread=0.3)
    sim = simulator(network, weights="int6")
    data = [network.batch(16, seed) for seed in range(2)]
    sim.calibrate(data)
    exact, simulated = copies(sim.simulation)
    measured = measure_errors(sim.simulation, exact, simulated, data)
    by_group = _by_group(Groups(sim.simulation), measured.errors)
    sites = [[site for error in errors for site in error.sites] for errors in by_group]
    shares = np.array([sum(error.share for error in errors) for errors in by_group])
    found = alone_module.measure_alone(measured.trials, exact, sites, shares)
    assert found.passes < alone_module._PASSES + 3
    judge = Judge.of(exact, data)
    for index, members in enumerate(sites):
        with measured.trials.model_alone(members) as model:
            ratios = [ratio for batch in judge.ratios(model) for ratio in batch]
        assert 10 * np.log10(found.noise[index]) == pytest.approx(-np.mean(ratios), abs=1.5)


def test_errors_of_outputs_are_kept_by_sample() -> None:
    """Rows of a judge are the errors over the length of what the float model has, as NumPy computes them."""
    network = chain(1, spread=0)
    sim = simulator(network, weights="int4")
    data = [network.batch(4)]
    sim.calibrate(data)
    exact, simulated = copies(sim.simulation)
    ratios, (errors,) = Judge.of(exact, data).errors(simulated)
    (name,) = exact.graph.outputs
    before, after = (model.run(data[0])[name].reshape(4, -1) for model in (exact, simulated))
    expected = (after - before) / np.linalg.norm(before, axis=1, keepdims=True)
    np.testing.assert_allclose(errors, expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(ratios[0], -10 * np.log10(np.square(expected).sum(1)), atol=1e-2)
