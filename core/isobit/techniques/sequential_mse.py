"""Sequential MSE: weight scales chosen by the error of the layer's output, nearest rounding kept."""

from __future__ import annotations

from dataclasses import dataclass

from isobit.statistics.layer_rows.rows import ROW_LIMIT
from isobit.techniques.context import Requests, TechniqueContext
from isobit.techniques.rounding.problem import Problem, Solution
from isobit.techniques.rounding.procedure import Procedure, round_weights
from isobit.techniques.rounding.scale_search import CANDIDATES
from isobit.techniques.technique import TechniqueReport


@dataclass(frozen=True)
class SequentialMse:
    """Choose the scale of each channel or block among `candidates` shrunk ranges by the error of the layer's output.

    For every width. The other settings are those of `isobit.techniques.rounding.procedure.Procedure`.
    """

    candidates: int = CANDIDATES
    sweeps: int = 1
    sequential: bool = False
    correct_bias: bool = True
    damping: float = 0.01
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
        """Write weights rounded to the chosen scales; needs data for two passes, or what was observed of it."""
        return round_weights("SequentialMse", context, Procedure.of(self), self._solve)

    def _solve(self, problem: Problem) -> Solution:
        encoding = problem.searched(self.candidates)
        return problem.grid(encoding).nearest(problem.matrix), encoding
