"""Setting the quantizers by a scheme, where the scheme stands for several by the one that the outputs are best with."""

from __future__ import annotations

import logging

import numpy as np

from isobit.backend.checked_model import CheckedModel
from isobit.calibration.resolve import Resolved
from isobit.calibration.scheme import Calibrator
from isobit.calibration.schemes.auto import ComparesSchemes
from isobit.errors import FormatError, ModelError
from isobit.quantsim.checks.quality import sample_decibels
from isobit.quantsim.simulation import Simulation

logger = logging.getLogger(__name__)

#: Decibels by which a later candidate must be better: last bits, in which frameworks differ, do not choose.
_MARGIN = 0.1

#: Decibels by which one that is worse after a few samples is not run on the others.
_HOPELESS = 2.0


def set_encodings(simulation: Simulation, calibrator: Calibrator) -> None:
    """Choose every encoding by the statistics, and set the quantizers."""
    if not isinstance(calibrator, ComparesSchemes):
        simulation.set_encodings(calibrator)
        return
    first = calibrator.candidates[0]
    integers = any(p.spec.is_integer and p.fixed_range is None for p in simulation.plan.of_kind("activation"))
    if not simulation.judged or not integers:
        simulation.set_encodings(first)
        if integers:
            note = f"calibration {calibrator.name!r} had no samples to compare schemes with: it took {first.name!r}"
            simulation.notes[note] = None
        return
    figures = _set_best(simulation, calibrator)
    logger.info("calibration %s: %s dB", calibrator.name, figures)
    simulation.calibration = f"{simulation.calibration} (the best of {figures} dB)"
    if simulation.model.compensations:
        _judge_compensations(simulation)


def _set_best(simulation: Simulation, calibrator: ComparesSchemes) -> str:
    """Set the encodings of the best candidate; returns what all of them came to, in words."""
    tried: list[tuple[Calibrator, Resolved, Ratios]] = []
    best = 0
    for candidate in calibrator.candidates:
        try:
            resolved = simulation.resolve(candidate)
        except FormatError:  # it has no ranges for the formats of this plan
            continue
        ratios = next((ratios for _, other, ratios in tried if other.encodings == resolved.encodings), None)
        if ratios is None:
            simulation.take(resolved, candidate)
            ratios = _ratios(simulation, simulation.model, tried[best][2] if tried else None)
        tried.append((candidate, resolved, ratios))
        if _mean(ratios) > _mean(tried[best][2]) + _MARGIN:
            best = len(tried) - 1
    simulation.take(tried[best][1], tried[best][0])
    return ", ".join(f"{candidate.name} {_mean(ratios):.1f}" for candidate, _, ratios in tried)


def _judge_compensations(simulation: Simulation) -> None:
    """Take back what techniques did to make up for quantization where the outputs are better without it."""
    without = simulation.model.copy()
    without.take_back()
    kept = _ratios(simulation, simulation.model)
    bare = _ratios(simulation, without, kept)
    figures = f"{_mean(bare):.1f} dB without, {_mean(kept):.1f} dB with"
    logger.info("corrections of biases: %s", figures)
    if _mean(bare) > _mean(kept) + _MARGIN:
        simulation.model.take_back()
        note = f"the correction of biases was taken back: the outputs are better without it ({figures})"
        simulation.notes[note] = None


#: The decibels of the samples of each batch.
Ratios = list[list[float]]


def _ratios(simulation: Simulation, model: CheckedModel, rival: Ratios | None = None) -> Ratios:
    """The quality of the outputs of `model` on the samples that are kept; of a few where `rival` is far ahead."""
    ratios: Ratios = []
    try:
        for batch, exact in simulation.judged:
            ratios.append(sample_decibels(exact, model.run(batch)))
            if rival is not None and _mean(ratios) < _mean(rival[: len(ratios)]) - _HOPELESS:
                break
    except ModelError:  # rounded numbers became sizes that do not fit: `run` says so to who asks for it
        return [[float("-inf")]]
    return ratios


def _mean(ratios: Ratios) -> float:
    """Over all samples; 200 where no output can be compared."""
    values = [value for batch in ratios for value in batch]
    return float(np.mean(values)) if values else 200.0
