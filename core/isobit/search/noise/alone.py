"""What groups of quantizers do alone at the outputs, and two of them together, from runs on a few samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from isobit.analysis.sensitivity.split_batches import split
from isobit.analysis.tensor_noise import Floats
from isobit.analysis.trials import Trials, ratios_of_samples
from isobit.backend.checked_model import CheckedModel
from isobit.data import Batch
from isobit.data.samples import SampleAxes
from isobit.errors import ModelError
from isobit.graph.sites import Site
from isobit.quantsim.judging.judge import Judge, mean

#: Groups of which a run tells what they do alone, those with the largest shares of the error.
_MEASURED = 128

#: Passes over all samples that these runs may take together, and samples that each is run on at least.
_PASSES, _FEWEST = 5.0, 4

#: What two groups add to, or take from, their sum is told where it is so much of the whole noise, and where samples
#: agree by so many standard errors; of so many pairs at most, for each is a choice of the integer program.
_TELLING, _SURE, _PAIRS = 0.005, 4.0, 64

#: What was found of two is taken by this part: it is measured on a few samples, and other pairs are left out.
_TAKEN = 0.9


@dataclass(frozen=True, eq=False)
class Alone:
    """Energies of errors to those of the outputs: of each group, and what two have beside their sum.

    `passes` are what the runs took, in passes over all samples.
    """

    noise: Floats
    crossed: Mapping[tuple[int, int], float]
    passes: float


def measure_alone(trials: Trials, exact: CheckedModel, groups: Sequence[Sequence[Site]], shares: Floats) -> Alone:
    """Run each group alone, those with the largest `shares`; of the others the shares tell.

    The samples are the first ones, and the distance in decibels to all samples is that of all quantizers together.
    """
    axes = SampleAxes.of(exact.graph)
    order = np.argsort(-shares, kind="stable")
    some = max(_FEWEST, math.floor(_PASSES * trials.samples / max(1, min(len(order), _MEASURED))))
    head, _ = split(trials.batches, axes, some)
    judge = Judge.of(exact, head)
    to_all = _from_few_to_all(trials, head)
    noise = shares * trials.noise
    errors: dict[int, list[NDArray[np.float32]]] = {}
    ratios = []
    for index in (int(number) for number in order[:_MEASURED]):
        with trials.model_alone(groups[index]) as model:
            found, errors[index] = judge.errors(model)
        alone = 10 ** (-max(mean(found) + to_all, -100.0) / 10)
        if noise[index] > 0 and alone > 0:
            ratios.append(alone / noise[index])
        noise[index] = alone
    noise[order[_MEASURED:]] *= float(np.median(ratios)) if ratios else 1.0
    passes = (min(len(order), _MEASURED) + 3) * axes.size(head) / max(1, trials.samples)
    return Alone(noise, _crossed(noise, errors), passes)


def _from_few_to_all(trials: Trials, head: Sequence[Batch]) -> float:
    """The decibels that all quantizers together have on all samples, less those on the first ones."""
    if trials.outputs is None:
        return 0.0
    try:
        pairs = [(trials.run_float(batch), trials.model.run(batch)) for batch in head]
    except ModelError:  # rounded numbers became sizes that do not fit
        return 0.0
    few = [ratio for exact, other in pairs for ratio in ratios_of_samples(exact, other, trials.names)]
    away = trials.sqnr - float(np.mean(few)) if few else 0.0
    return away if math.isfinite(away) else 0.0


def _crossed(noise: Floats, errors: Mapping[int, Sequence[NDArray[np.float32]]]) -> dict[tuple[int, int], float]:
    """Twice the product of the errors of two groups, by the mean of their correlations in each sample."""
    indices = [index for index, rows in errors.items() if rows and noise[index] > 0]
    rows_of = {index: [row for batch in errors[index] for row in batch] for index in indices}
    samples = {tuple(row.size for row in rows) for rows in rows_of.values()}
    if len(samples) != 1 or len(next(iter(samples))) < 2:  # sizes that follow the values, or one sample
        return {}
    correlations = []
    for number in range(len(next(iter(samples)))):
        rows = np.stack([rows_of[index][number] for index in indices]).astype(np.float64)
        lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
        rows /= np.where(lengths > 0, lengths, 1.0)[:, None]
        correlations.append(rows @ rows.T)
    means = np.mean(correlations, axis=0)
    scatter = np.std(correlations, axis=0, ddof=1) / math.sqrt(len(correlations))
    total = float(noise[indices].sum())
    found = {}
    for a, b in combinations(range(len(indices)), 2):
        energy = 2 * _TAKEN * float(means[a, b]) * math.sqrt(noise[indices[a]] * noise[indices[b]])
        if abs(energy) > _TELLING * total and abs(means[a, b]) > _SURE * scatter[a, b]:
            found[min(indices[a], indices[b]), max(indices[a], indices[b])] = energy
    return dict(sorted(found.items(), key=lambda item: -abs(item[1]))[:_PAIRS])
