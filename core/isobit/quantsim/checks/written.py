"""A written file is compared with the simulator, on one batch and in every session that users may run it in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isobit.backend.optional import WrittenRun
from isobit.encodings.encoding import Encoding
from isobit.graph.graph import Graph
from isobit.graph.sites import Site, Tensor
from isobit.quantsim.checks.bounded_outputs import rounding_of
from isobit.quantsim.checks.quality import Outputs, decibels, is_rounding

_LEVELS = 255  # what stands for the steps of an output without a grid: its range, zero included, in so many parts


@dataclass(frozen=True)
class SessionCheck:
    """How far a written file is from the simulator in one kind of session.

    `equal` is the share of equal values over all outputs; those of an output without a grid are equal up to the
    rounding of float sums, 2**-16 of its largest magnitude, since no runtime adds in the same order. `steps` is the
    largest difference, in steps of the output's grid or, where it has none, in parts of 1/255 of its range with zero;
    `decibels` that of the worst float output. `error` says why there are no figures. `remark` is
    what the backend says of such a session on this machine, or in float mode which tensor is the first that differs.
    """

    session: str
    equal: float = 0.0
    steps: float = math.inf
    decibels: float = -math.inf
    error: str = ""
    remark: str = ""

    def __str__(self) -> str:
        if self.error:
            return f"{self.session}: {self.error}"
        ratio = "" if self.decibels == math.inf else f", {self.decibels:.1f} dB"
        if self.equal == 1:
            return f"{self.session}: every value equal{' but for the last bits of floats' if self.steps else ''}{ratio}"
        share = min(100 * self.equal, 99.99)
        remark = f"; {self.remark}" if self.remark else ""
        steps = "1 step" if self.steps == 1 else f"{self.steps:.3g} steps"
        return f"{self.session}: {share:.2f} % of the values equal, at most {steps} apart{ratio}{remark}"


def compare_runs(
    simulated: Outputs, runs: Sequence[WrittenRun], graph: Graph, encodings: Mapping[Site, Encoding]
) -> list[SessionCheck]:
    """What each run of a file gave against the simulator's outputs."""
    return [_compared(simulated, run, graph, encodings) for run in runs]


def _compared(simulated: Outputs, run: WrittenRun, graph: Graph, encodings: Mapping[Site, Encoding]) -> SessionCheck:
    if run.error:
        return SessionCheck(run.session, error=run.error)
    equal = total = 0
    steps, worst = 0.0, math.inf
    for name, expected in simulated.items():
        values = run.outputs.get(name)
        if values is None or values.shape != expected.shape:
            shape = "is missing" if values is None else f"has shape {values.shape}, not {expected.shape}"
            return SessionCheck(run.session, error=f"output {name!r} {shape}")
        tensor = graph.outputs.get(name, name)
        encoding = encodings.get(Tensor(tensor))
        same = (values == expected) | ((values != values) & (expected != expected))
        bounded = rounding_of(graph, tensor) if encoding is None else 0.0
        near = same | is_rounding(expected, values, relative=0.0, absolute=bounded)
        rounded = same if encoding is not None else near | is_rounding(expected, values)
        equal, total = equal + int(np.count_nonzero(rounded)), total + expected.size
        if expected.dtype.kind == "f" and not np.all(same):
            steps = max(steps, _largest(expected, values, encoding, is_bounded=bounded > 0))
            worst = worst if np.all(near) else min(worst, decibels(expected, values))
    return SessionCheck(run.session, equal / total if total else 1.0, steps, worst, remark=run.remark)


def _largest(
    expected: NDArray[np.float32], values: NDArray[np.float32], encoding: Encoding | None, *, is_bounded: bool
) -> float:
    """The largest difference in steps."""
    exact, other = expected.astype(np.float64), values.astype(np.float64)
    finite = np.isfinite(exact)
    if not np.array_equal(finite, np.isfinite(other)):
        return math.inf
    difference = float(np.abs(exact[finite] - other[finite]).max(initial=0.0))
    if encoding is not None and encoding.spec.is_integer:
        return difference / float(encoding.scale.min())
    spread = float(exact[finite].max(initial=0.0) - exact[finite].min(initial=0.0))
    spread = max(spread, 1.0) if is_bounded else spread  # what it could be, where it is next to nothing on these data
    return difference / (spread / _LEVELS) if spread else math.inf
