"""How much noise each group makes at the output in each format, from what one analysis measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from isobit.analysis.advise import left_with
from isobit.analysis.findings import SiteError
from isobit.analysis.measure_errors import MeasuredErrors, copies, measure_errors
from isobit.analysis.weight_noise import measure_weights
from isobit.data import Batch
from isobit.encodings.encoding import Encoding
from isobit.graph.sites import Input, Site, Tensor
from isobit.quantsim.other_formats import encodings_with
from isobit.quantsim.simulation import Simulation
from isobit.search.formats import Candidate
from isobit.search.groups import Groups
from isobit.search.noise.alone import measure_alone
from isobit.search.operations import Floats


@dataclass(frozen=True, eq=False)
class GroupNoise:
    """Energy of the error to that of the outputs: of each group in each format, and of two beside their sum.

    `single` has a row for each group and a column for each format, infinite where a group cannot have it; `crossed`
    what is to be added for two groups, (formats of the first, of the second), negative where their errors cancel.
    `passes` are the runs of single groups, in passes over all samples.
    """

    single: Floats
    crossed: Mapping[tuple[int, int], Floats]
    passes: float


def noise_by_group(
    simulation: Simulation,
    groups: Groups,
    candidates: Sequence[Candidate],
    current: Candidate,
    least: int,
    batches: Sequence[Batch],
) -> GroupNoise:
    """The noise of groups alone, in each format.

    One run each, on a few of the samples, tells what a group does alone, which is what is left of it once others are
    repaired: shares of the whole error are no measure of that, since errors of early layers are alike at many places
    and add up. What two groups do to the same outputs tells whether their errors add up or cancel. Other formats are
    judged on the values that were kept.
    """
    exact, simulated = copies(simulation)
    measured = measure_errors(simulation, exact, simulated, batches)
    by_group = _by_group(groups, measured.errors)
    shares = np.array([sum(error.share for error in errors) for errors in by_group])
    alone = measure_alone(
        measured.trials, exact, [[site for error in errors for site in error.sites] for errors in by_group], shares
    )
    base = alone.noise
    noise = np.full((len(groups.all), len(candidates)), np.inf)
    for column, candidate in enumerate(candidates):
        allowed = [i for i, group in enumerate(groups.all) if group.allows(candidate, current)]
        if candidate.is_float:
            noise[allowed, column] = 0.0
            continue
        overrides = groups.overrides(dict.fromkeys(allowed, candidate), least)
        encodings = encodings_with(simulation, overrides) if overrides else {}
        left = _left_of_weights(simulation, measured, encodings, batches)
        for index in allowed:
            parts = [(error.share, _left(measured, error, encodings, left)) for error in by_group[index]]
            if not shares[index] > 0:  # noise that was not followed back to them: each counts alike
                parts = [(1.0, part) for _, part in parts]
            total = sum(share for share, _ in parts)
            noise[index, column] = base[index] * (sum(share * part for share, part in parts) / total if total else 1.0)
    crossed = {}
    column = list(candidates).index(current)
    for pair, energy in alone.crossed.items():
        if np.isfinite(noise[list(pair), column]).all():
            crossed[pair] = np.zeros((len(candidates), len(candidates)))
            crossed[pair][column, column] = energy  # finer grids leave next to nothing of it, others are not known
    return GroupNoise(noise, crossed, alone.passes)


def _by_group(groups: Groups, errors: Sequence[SiteError]) -> list[list[SiteError]]:
    of_site = {placement.site: i for i, group in enumerate(groups.all) for placement in group.placements}
    found: list[list[SiteError]] = [[] for _ in groups.all]
    for error in errors:
        index = next((of_site[site] for site in error.sites if site in of_site), None)
        if index is not None:
            found[index].append(error)
    return found


def _left(
    measured: MeasuredErrors, error: SiteError, encodings: Mapping[Site, Encoding], of_weights: Mapping[Site, float]
) -> float:
    """How much of a site's noise there is in other encodings.

    Readers that round one tensor each for themselves may share the tensor's grid in other formats, or part.
    """
    site = error.sites[0]
    sites: list[Site] = [site]
    if error.kind == "activation":
        tensor = measured.findings.plan.placements[site].tensor
        uses = measured.findings.model.graph.uses(tensor)
        sites += [Tensor(tensor), *(Input(use.node.name, use.index) for use in uses)]
    before = measured.trials.encodings.get(site)
    encoding = next((encodings[other] for other in sites if other in encodings), None)
    if before is None or encoding is None or encoding == before:
        return 1.0
    left = left_with(measured.findings, error, encoding) if error.kind == "activation" else of_weights.get(site)
    return _by_step(before, encoding) if left is None else left


def _by_step(before: Encoding, after: Encoding) -> float:
    """What is left of the noise of rounding by the steps of the grids, where nothing else tells (Widrow, 1961)."""
    if not (before.spec.is_integer and after.spec.is_integer):
        return 1.0
    steps = [np.square(encoding.scale, dtype=np.float64).mean() for encoding in (before, after)]
    return float(steps[1] / steps[0]) if steps[0] > 0 else 1.0


def _left_of_weights(
    simulation: Simulation, measured: MeasuredErrors, encodings: Mapping[Site, Encoding], batches: Sequence[Batch]
) -> dict[Site, float]:
    """The same for weights, by what they do at the outputs of their layers."""
    current = measured.trials.encodings
    changed = {
        site: encoding
        for site, encoding in encodings.items()
        if site in current and encoding != current[site] and simulation.plan.placements[site].kind != "activation"
    }
    if not changed:
        return {}
    findings = measured.findings
    exact, _ = copies(simulation)
    by_sample = measured.trials.by_sample()
    other = measure_weights(exact, changed, findings.plan, batches, by_sample)
    before: dict[Site, float] = {}
    after: dict[Site, float] = {}
    for key, item in other.items():
        was, worth = findings.weights.get(key), findings.worth.weights.get(key)
        if was is None:
            continue
        if worth is not None and item.power is not None and was.power is not None:
            pair = float((worth * was.power).sum()), float((worth * item.power).sum())
        else:
            pair = was.relative, item.relative
        before[item.site] = before.get(item.site, 0.0) + pair[0]
        after[item.site] = after.get(item.site, 0.0) + pair[1]
    return {site: after[site] / before[site] for site in after if before[site] > 0}
