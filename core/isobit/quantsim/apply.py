"""What a simulator does with data: techniques are applied, observed for, and its quantizers calibrated."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MappingProxyType

from isobit.calibration.needed_statistics import blank_statistics, observed_sites
from isobit.calibration.scheme import Calibrator
from isobit.encodings.encoding import Encoding
from isobit.errors import DataError
from isobit.graph.sites import Site
from isobit.quantsim.checks.warn_of_coverage import warn_of_coverage
from isobit.quantsim.judging.choose_scheme import set_encodings
from isobit.quantsim.observe import Passes, refuse_non_finite
from isobit.quantsim.simulation import Simulation
from isobit.quantsim.training.keep_grids import kept_encodings
from isobit.statistics.count_bits import VARIABLE, counted_by_numpy
from isobit.techniques.context import Observations, Requests, TechniqueContext
from isobit.techniques.technique import Observes, SharesCalibration, Technique, TechniqueReport

logger = logging.getLogger(__name__)


def context_of(
    simulation: Simulation,
    passes: Passes | None,
    calibrator: Calibrator,
    name: str = "this",
    learned: Mapping[Site, Encoding] = MappingProxyType({}),
) -> TechniqueContext:
    """What a technique of this name works on; encodings that were `learned` are decided."""
    statistics = simulation.statistics if passes is None else passes.start()
    return TechniqueContext(
        simulation.model,
        simulation.plan,
        None if passes is None else passes.dataset,
        frozen={**learned, **simulation.frozen},
        replan=simulation.plan_for,
        calibrator=calibrator,
        batch_norms=simulation.batch_norms,
        statistics=statistics,
        run_pass=passes,
        name=name,
    )


def apply_technique(
    simulation: Simulation, technique: Technique, passes: Passes | None, calibrator: Calibrator
) -> TechniqueReport:
    """Let a technique change the float model; a calibrated simulation has no quantizers afterwards.

    One that was trained keeps them where the technique says that what was learned still fits.
    """
    simulation.note_training()
    learned, calibration = simulation.encodings if simulation.is_trained else {}, simulation.calibration
    simulation.remove_quantizers()
    edits_before, removed_before = len(simulation.edits), len(simulation.model.removed)
    report = technique.apply(context_of(simulation, passes, calibrator, type(technique).__name__, learned))
    simulation.take_report(report, edits_before)
    if learned and report.rescaled is not None and calibration is not None:
        graph, plan = simulation.graph, simulation.plan
        removed = simulation.model.removed[removed_before:]
        kept = kept_encodings(graph, plan, learned, report.rescaled, removed, simulation.model.weight)
        if kept is not None:
            simulation.adopt(plan, simulation.config, kept, calibration)
            simulation.is_trained = True
    _note(simulation, passes)
    logger.info("%s: %d changed, %d left", report.technique, len(report.changed), len(report.left))
    for name, why in report.left.items():
        logger.debug("%s left %s: %s", report.technique, name, why)
    return report


def observe_for(
    simulation: Simulation, technique: Technique, passes: Passes, calibrator: Calibrator
) -> Observations | None:
    """Observe what a technique will ask for on the model as it is now; None where it asks for nothing."""
    simulation.remove_quantizers()
    context = context_of(simulation, passes, calibrator, type(technique).__name__)
    requests = requests_of(technique, context)
    observations = None if requests.are_none else context.observe(requests)
    _note(simulation, passes)
    return observations


def requests_of(technique: Technique, context: TechniqueContext) -> Requests:
    """What a technique says that it must observe."""
    return technique.requests(context) if isinstance(technique, Observes) else Requests()


def uses_data(technique: Technique) -> bool:
    """Whether a technique goes through the data."""
    return isinstance(technique, Observes) and technique.uses_data


def needs_own_pass(technique: Technique) -> bool:
    """Whether a technique goes through the data, and not in the pass that calibration makes anyway."""
    shares = isinstance(technique, SharesCalibration) and technique.shares_calibration
    return uses_data(technique) and not shares


def calibrate(
    simulation: Simulation,
    passes: Passes,
    calibrator: Calibrator,
    limit: int | None,
    *,
    ignore_non_finite: bool = False,
) -> None:
    """Observe the ranges of the float model, as far as they are not there yet, and set every quantizer by them."""
    blank = blank_statistics(simulation.observed_plan, limit)
    active = list(simulation.model.encodings())
    simulation.model.enable(active, on=False)
    before = simulation.statistics
    is_again = simulation.calibration is not None and not simulation.is_trained  # what taught the training stays
    are_other = is_again and simulation.data is not passes.dataset
    try:
        statistics = passes.start(blank)
        statistics.set_ranges(blank)
        ranges = statistics.ranges()
        if not ranges or not statistics.is_complete:
            passes(simulation.model, [seen for seen in ranges if not seen.complete], "calibrating")
        if not ignore_non_finite:
            refuse_non_finite(statistics, simulation.model, passes.dataset)
        simulation.keep_reference(passes.dataset.head, are_other=are_other)
    except BaseException:
        simulation.statistics = before
        simulation.model.enable(active, on=True)
        raise
    _note(simulation, passes)
    if counted_by_numpy():
        simulation.notes[f"values were counted by NumPy, as {VARIABLE} says: with numba it is faster"] = None
    set_encodings(simulation, calibrator, passes.each)
    warn_of_coverage(simulation)


def recalibrate(simulation: Simulation, calibrator: Calibrator) -> None:
    """Set every quantizer from the statistics that are there. Raises DataError where some are missing."""
    if not len(simulation.statistics) and (simulation.calibration is None or observed_sites(simulation.observed_plan)):
        raise DataError("there are no statistics yet: calibrate with data first")
    set_encodings(simulation, calibrator)
    warn_of_coverage(simulation)


def _note(simulation: Simulation, passes: Passes | None) -> None:
    if passes is not None:
        simulation.notes.update(passes.dataset.notes)
