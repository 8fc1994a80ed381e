"""`isobit.analyze`: which quantizers hurt, why, and what would repair them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from isobit.analysis.advise import Findings, advise, gain_of
from isobit.analysis.analysis import Analysis
from isobit.analysis.drift import find_drift
from isobit.analysis.findings import LEAST, Advice, SiteError
from isobit.analysis.judge_data import SeenData
from isobit.analysis.measure_errors import copies, measure_errors
from isobit.analysis.sensitivity import Measure, Sensitivity, measure_sites
from isobit.analysis.site_errors import decibels, error_by_depth
from isobit.analysis.trials import Trials, score
from isobit.backend.checked_model import CheckedModel
from isobit.calibration.scheme import Calibrator
from isobit.calibration.schemes.minmax import MinMaxRange
from isobit.calibration.schemes.mse import MeanSquareError
from isobit.data import Batch, Dataset
from isobit.data.samples import SampleAxes, cut_batches
from isobit.encodings.quant_spec import PerChannel, QuantSpec
from isobit.errors import DataError, FormatError
from isobit.placement.coverage import Coverage
from isobit.quantsim.checks.quality import sample_decibels
from isobit.quantsim.judging.evaluate import Evaluate, check_evaluate
from isobit.quantsim.judging.figures import Figures, require_numbers
from isobit.quantsim.quantsim import QuantSim
from isobit.quantsim.shown.report import Report

#: For each suggestion that is tried, sites of which a run tells how the output does without them.
_SITES_A_CHECK = 3

#: Sites that get advice where nothing is tried.
_UNTRIED = 12

#: The least share of the error for which such a run is made.
_WORTH_A_RUN = 0.002

#: Samples that are searched for one that sets ranges alone.
_SEARCHED = 256


def analyze(
    sim: QuantSim,
    data: Any,
    evaluate: Evaluate | None = None,
    *,
    second: Any = None,
    samples: int = 16,
    checks: int = 5,
    measure: Measure | None = None,
    batch_size: int = 16,
    inputs: Callable[[Any], Any] | None = None,
    ignore_non_finite: bool = False,
) -> Analysis:
    """Find out what hurts in a calibrated simulator, and what would repair it.

    Two passes over `samples` samples, one in float and one simulated, tell how much of the output's error each
    quantizer makes, and why. The first `checks` suggestions are tried on these samples, after one run each has told
    what the output is without the quantizers that make the most, three times as many. With 0 checks nothing is run
    beyond the two passes. ``measure="off"`` measures every site off alone, ``"on"`` every site on alone, in the
    work of 30 passes, or of a quarter of one for each where that is more. `evaluate` takes a model, a function from a
    batch to outputs by name, and returns a number, the higher the better, or several by name; it is called for the
    float and the simulated model. `second` is other data, as from the field: which ranges it would move, and what those
    of `data` cost on it. `batch_size`, `inputs` and `ignore_non_finite` are about the data, as in
    `QuantSim.calibrate`. The simulator stays as it is.

    Raises ModelError when it is not calibrated or has no float output to compare, DataError for data without a sample,
    EvaluateError for an `evaluate` that returns no number.
    """
    if measure not in (None, "on", "off"):
        raise FormatError(f"measure is 'on', 'off' or None, not {measure!r}")
    if samples < 1:
        raise DataError(f"an analysis needs at least 1 sample, not {samples}")
    if evaluate is not None:
        check_evaluate(evaluate, picklable=False)
    simulation = sim.simulation
    simulation.require_quantizers()

    def batches_of(source: Any) -> tuple[list[Batch], list[Batch]]:
        size = min(batch_size, samples)
        return first_batches(
            Dataset(source, sim.graph, batch_size=size, inputs=inputs, ignore_non_finite=ignore_non_finite), samples
        )

    batches, searched = batches_of(data)
    others = [] if second is None else batches_of(second)[1]
    count = _count(sim, batches)
    exact, simulated = copies(simulation)
    scores = _scores(evaluate, exact, simulated)  # first: where it fails, nothing else was waited for
    seen = SeenData(exact, searched, _grids(sim), is_compared=bool(others))
    measured = measure_errors(simulation, exact, simulated, batches)
    trials, findings = measured.trials, measured.findings
    plan, noise = findings.plan, findings.noise
    errors, sensitivity = _measured(trials, measured.errors, measure, checks)
    suggestions, together = _suggestions(trials, findings, errors, checks)
    activations = [site for site in trials.encodings if plan.placements[site].kind == "activation"]
    scheme = _scheme(simulation.calibration)
    judged = seen.judge(errors, scheme)
    if others:
        judged = replace(judged, drift=find_drift(exact, others, seen.histograms, _grids(sim), errors, scheme))
    constants = [site for site in trials.encodings if site not in set(activations)]
    return Analysis(
        simulation.target.name,
        simulation.calibration or "",
        count,
        trials.sqnr,
        trials.by_output(),
        decibels(1.0, trials.without(activations)),
        decibels(1.0, trials.without(constants)),
        _by_sample(trials),
        tuple(errors),
        tuple(suggestions),
        together,
        error_by_depth(simulated.graph, noise),
        judged,
        scores,
        str(Coverage.of(simulated.graph, plan)),
        Report.of(simulation).left_in_float,
        tuple(f"{name} was not compared: {why}" for name, why in noise.left.items()),
        sensitivity,
    )


def _grids(sim: QuantSim) -> dict[str, QuantSpec]:
    """The tensors with one grid of integers that the data decided, and its format."""
    placed = (p for p in sim.plan.of_kind("activation") if p.simulated and p.fixed_range is None)
    return {p.tensor: p.spec for p in placed if p.spec.is_integer and not isinstance(p.spec.granularity, PerChannel)}


def _scheme(calibration: str | None) -> Calibrator:
    """The scheme by which ranges are compared: min-max where that was taken, else least errors."""
    return MinMaxRange() if (calibration or "").startswith(MinMaxRange.__name__) else MeanSquareError()


def first_batches(dataset: Dataset, samples: int) -> tuple[list[Batch], list[Batch]]:
    """Batches of so many samples, and those in which a sample that sets ranges is looked for."""
    axes = SampleAxes.of(dataset.graph)
    batches: list[Batch] = []
    searched: list[Batch] = []
    for batch in dataset:
        left = samples - axes.size(batches)
        if left > 0:
            batches.append(_first(batch, axes, left))
        searched.append(batch)
        if axes.size(searched) >= max(_SEARCHED, samples):
            break
    return batches, searched


def _first(batch: Batch, axes: SampleAxes, samples: int) -> Batch:
    """The first samples of a batch; all of it where the model's own batch size is fixed."""
    if axes.fixed is not None:
        return batch
    cut = axes.cut(batch)
    total = min((batch[name].shape[axis] for name, axis in cut.items()), default=1)
    return next(iter(cut_batches(batch, cut, min(total, samples), samples))) if cut else batch


def _count(sim: QuantSim, batches: Sequence[Batch]) -> int:
    return SampleAxes.of(sim.graph).size(batches)


def _measured(
    trials: Trials, errors: list[SiteError], measure: Measure | None, checks: int
) -> tuple[list[SiteError], Sensitivity | None]:
    """The worst sites with what the output is without them; all, where asked, without them or with them alone."""
    worst = {i for i, error in enumerate(errors[: _SITES_A_CHECK * checks]) if error.share >= _WORTH_A_RUN}
    without: dict[int, float] = {}
    scatter: dict[int, float] = {}
    alone: dict[int, float] = {}
    about = None
    if measure is not None:
        measured = measure_sites(trials, errors, measure, len(worst))
        about = measured.about
        (without if measure == "off" else alone).update(enumerate(measured.decibels))
        scatter.update(enumerate(measured.scatter) if measure == "off" else ())
    for i in sorted(worst - without.keys()):
        noise, scatter[i] = trials.without_these(errors[i].sites)
        without[i] = decibels(1.0, noise)
    found = [
        replace(error, without=without.get(i), scatter=_finite(scatter.get(i)), alone=alone.get(i))
        for i, error in enumerate(errors)
    ]
    return found, about


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _suggestions(
    trials: Trials, findings: Findings, errors: Sequence[SiteError], checks: int
) -> tuple[list[Advice], float | None]:
    """What would help, the most helpful first; the first ones are tried, alone and together."""
    if not trials.noise > 0 or not np.isfinite(trials.noise):
        return [], None
    suggestions = []
    for error in errors[: _SITES_A_CHECK * checks if checks else _UNTRIED]:
        if error.share >= _WORTH_A_RUN:
            advice = advise(findings, error, None if error.without is None else 10 ** (-error.without / 10))
            if advice is not None and advice.predicted >= LEAST:
                suggestions.append(advice)
    suggestions.sort(key=lambda advice: -advice.predicted)
    tried = [replace(a, measured=gain_of(trials.noise, trials.changed([a]))) for a in suggestions[:checks]]
    good = [advice for advice in tried if (advice.measured or 0.0) >= LEAST]
    together = gain_of(trials.noise, trials.changed(good)) if len(good) > 1 else None
    bad = [advice for advice in tried if advice not in good]
    return [*sorted(good, key=lambda advice: -(advice.measured or 0.0)), *suggestions[checks:], *bad], together


def _by_sample(trials: Trials) -> tuple[float, ...]:
    """The decibels of each sample of the first float output."""
    if trials.outputs is None:
        return ()
    name = trials.names[0]
    pairs = zip(trials.exact, trials.outputs, strict=True)
    return tuple(ratio for a, b in pairs for ratio in sample_decibels({name: a[name]}, {name: b[name]}))


def _scores(evaluate: Evaluate | None, exact: CheckedModel, simulated: CheckedModel) -> dict[str, Figures]:
    in_float = score(evaluate, exact)
    if in_float is None:
        return {}
    require_numbers(in_float)
    quantized = score(evaluate, simulated)
    return {"float": in_float} | ({} if quantized is None else {"quantized": quantized})
