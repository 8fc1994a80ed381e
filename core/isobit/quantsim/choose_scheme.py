"""Setting the quantizers by a scheme, where the scheme stands for several by the one that the outputs are best with."""

from __future__ import annotations

import logging

from isobit.calibration.scheme import Calibrator
from isobit.calibration.schemes.auto import ComparesSchemes
from isobit.errors import FormatError, ModelError
from isobit.quantsim.checks.quality import mean_decibels
from isobit.quantsim.simulation import Simulation

logger = logging.getLogger(__name__)

#: Decibels by which a later candidate must be better: last bits, in which frameworks differ, do not choose.
_MARGIN = 0.1


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
    best, best_ratio, figures = first, float("-inf"), []
    for candidate in calibrator.candidates:
        try:
            simulation.set_encodings(candidate)
        except FormatError:  # it has no ranges for the formats of this plan
            continue
        try:
            ratio = mean_decibels((exact, simulation.model.run(batch)) for batch, exact in simulation.judged)
        except ModelError:  # rounded numbers became sizes that do not fit: `run` says so to who asks for it
            ratio = float("-inf")
        figures.append(f"{candidate.name} {ratio:.1f}")
        if ratio > best_ratio + _MARGIN:
            best, best_ratio = candidate, ratio
    if best is not candidate:
        simulation.set_encodings(best)
    logger.info("calibration %s: %s dB", calibrator.name, ", ".join(figures))
    simulation.calibration = f"{simulation.calibration} (the best of {', '.join(figures)} dB)"
