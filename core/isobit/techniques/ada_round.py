"""AdaRound: each weight up or down so that its layer's output changes least."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from isobit.statistics.layer_rows.rows import ROW_LIMIT
from isobit.techniques.context import Requests, TechniqueContext
from isobit.techniques.rounding.coordinate_descent import coordinate_descent
from isobit.techniques.rounding.gptq_solver import gptq
from isobit.techniques.rounding.problem import Problem, Solution
from isobit.techniques.rounding.procedure import Procedure, Refine, round_weights
from isobit.techniques.rounding.scale_search import fitted_scale
from isobit.techniques.technique import TechniqueReport

#: Sweeps over pairs before each fit of the scales; the descent to the end comes after.
_FITTING = (0, 1)


@dataclass(frozen=True)
class AdaRound:
    """Round weights by the error of their layer's output.

    The quadratic integer problem is solved from second moments: from the better of nearest and GPTQ, by coordinate
    descent over single weights and pairs; it never ends worse. `scales="searched"` chooses the scale of each channel
    by the same error, and refits it to the integers found; `"minmax"` keeps the grid of calibration.

    `activation_aware` goes on from there in the error behind the layer's activation function, where that is a Relu, a
    clip, a LeakyRelu or a PRelu: on the sampled rows themselves, of which those count for nothing whose output is cut
    off in both models. The errors of the report are then those behind the activation.

    `sequential="auto"` rounds layer after layer where some weights have fewer than 8 bits, and else all from one pass.

    The other settings are those of `isobit.techniques.rounding.procedure.Procedure`.

    Source of the problem: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020.
    """

    scales: Literal["searched", "minmax"] = "searched"
    sweeps: int = 1
    sequential: bool | Literal["auto"] = False
    correct_bias: bool = True
    activation_aware: bool = False
    damping: float | None = None
    rows: int = ROW_LIMIT
    memory: int = 1 << 29

    @property
    def uses_data(self) -> bool:
        """Always."""
        return True

    @property
    def rounds_weights(self) -> bool:
        """Always."""
        return True

    def requests(self, context: TechniqueContext) -> Requests:
        """The ranges, and rows of the inputs of all layers where they fit into `memory` together."""
        return self._procedure(context).requests(context)

    def apply(self, context: TechniqueContext) -> TechniqueReport:
        """Write rounded weights; needs data that serves two passes, or what was observed of it."""
        return ada_round(self, context)

    def _procedure(self, context: TechniqueContext) -> Procedure:
        """That of the settings, for the plan there is."""
        bits = [placement.spec.bits for placement in context.plan.of_kind("weight") if placement.spec.is_integer]
        sequential = min(bits, default=8) < 8 if self.sequential == "auto" else self.sequential
        return replace(Procedure.of(self), sequential=sequential)

    def _solve(self, problem: Problem) -> Solution:
        layer, objective = problem.layer, problem.objective
        searched = self.scales == "searched"
        encoding = problem.searched() if searched else problem.min_max()
        grid = problem.grid(encoding)
        nearest, fed_back = grid.nearest(problem.matrix), gptq(objective, grid, problem.matrix)
        worse = objective.error(grid.values(fed_back)) > objective.error(grid.values(nearest))
        integers = np.where(worse[..., None], nearest, fed_back)
        for sweeps in _FITTING if searched else ():
            integers = coordinate_descent(objective, problem.grid(encoding), integers, sweeps=sweeps)
            encoding = fitted_scale(encoding, integers, layer.placement, layer.patches, objective)
        integers = coordinate_descent(objective, problem.grid(encoding), integers)
        if problem.activated is not None:
            integers = problem.activated.descend(problem.grid(encoding), integers)
        return integers, encoding


def ada_round(settings: AdaRound, context: TechniqueContext, refine: Refine | None = None) -> TechniqueReport:
    """What `AdaRound` does; in the sequential mode `refine` may better what is solved before the next layers are."""
    return round_weights("AdaRound", context, settings._procedure(context), settings._solve, refine=refine)
