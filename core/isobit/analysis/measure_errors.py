"""The errors of all quantizers of a simulator on a few batches, and runs in which single ones are tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from isobit.analysis.advise import Findings
from isobit.analysis.findings import SiteError
from isobit.analysis.importance import follow_back
from isobit.analysis.site_errors import site_errors
from isobit.analysis.tensor_noise import measure_noise
from isobit.analysis.trials import Trials
from isobit.analysis.weight_noise import measure_weights
from isobit.backend.checked_model import CheckedModel
from isobit.data import Batch
from isobit.errors import ModelError
from isobit.quantsim.simulation import Simulation


@dataclass(frozen=True, eq=False)
class MeasuredErrors:
    """What two passes tell: `errors` has the quantizers, those that share a grid as one, the largest share first."""

    trials: Trials
    findings: Findings
    errors: list[SiteError]


def copies(simulation: Simulation) -> tuple[CheckedModel, CheckedModel]:
    """The float model and the simulated one, as copies."""
    exact = simulation.float_model().copy()
    exact.enable(list(exact.encodings()), on=False)
    return exact, simulation.model.copy()


def measure_errors(
    simulation: Simulation, exact: CheckedModel, simulated: CheckedModel, batches: Sequence[Batch]
) -> MeasuredErrors:
    """Run both models over the batches, and follow the noise of every tensor back from the outputs.

    Raises ModelError where nothing tells how large the error is: indices and truth values are equal or not.
    """
    trials = Trials(simulated, exact, batches)
    if not trials.names:
        given = ", ".join(f"{name} ({values.dtype})" for name, values in trials.exact[0].items())
        raise ModelError(
            f"the model has no float output with values to compare: {given}; analyze a model that also returns what "
            "these are made of, as the scores in front of an ArgMax"
        )
    plan, by_sample = simulation.plan, trials.by_sample()
    noise = measure_noise(exact, simulated, batches, by_sample)
    weights = measure_weights(exact, trials.encodings, plan, batches, by_sample)
    worth = follow_back(simulated, noise, weights)
    errors = site_errors(simulated, plan, noise, weights, worth)
    findings = Findings(
        simulated,
        plan,
        simulation.target,
        simulation.statistics,
        noise,
        weights,
        worth,
        trials.noise,
        trials.expected_without,
    )
    return MeasuredErrors(trials, findings, errors)
