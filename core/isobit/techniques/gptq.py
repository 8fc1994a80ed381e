"""GPTQ as a technique: rounding with error feedback."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from isobit.statistics.layer_rows.rows import ROW_LIMIT
from isobit.techniques.context import Requests, TechniqueContext
from isobit.techniques.rounding.gptq_solver import gptq
from isobit.techniques.rounding.problem import Problem, Solution
from isobit.techniques.rounding.procedure import Procedure, round_weights
from isobit.techniques.technique import TechniqueReport


@dataclass(frozen=True)
class GPTQ:
    """Round a weight's columns one after the other; those that follow make up for each error.

    `activation_order` takes the columns with the largest inputs first. `scales="searched"` chooses the scale of each
    channel by the error of the layer's output with nearest rounding; `"minmax"` keeps the grid of calibration.
    The other settings are those of `isobit.techniques.rounding.procedure.Procedure`.

    Source: Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers".
    """

    scales: Literal["searched", "minmax"] = "searched"
    activation_order: bool = True
    sweeps: int = 1
    sequential: bool = False
    correct_bias: bool = True
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
        return Procedure.of(self).requests(context)

    def apply(self, context: TechniqueContext) -> TechniqueReport:
        """Write rounded weights; needs data that serves two passes, or what was observed of it."""
        return round_weights("GPTQ", context, Procedure.of(self), self._solve)

    def _solve(self, problem: Problem) -> Solution:
        encoding = problem.searched() if self.scales == "searched" else problem.min_max()
        grid = problem.grid(encoding)
        return gptq(problem.objective, grid, problem.matrix, activation_order=self.activation_order), encoding
