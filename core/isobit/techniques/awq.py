"""AWQ: weights that meet strong input channels are made larger before they are rounded, the inputs smaller.

Source: Lin et al., "AWQ: Activation-aware Weight Quantization for On-Device LLM Compression and Acceleration",
MLSys 2024, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isobit.backend import BackendModel
from isobit.data import Dataset
from isobit.errors import FormatError
from isobit.plan import Plan
from isobit.techniques.input_errors import SeenInput, best_alpha
from isobit.techniques.input_rescaling import rescale_inputs
from isobit.techniques.input_scaling import ScaledInput, find_inputs
from isobit.techniques.technique import TechniqueReport
from isobit.techniques.weighted_layer import Floats


@dataclass(frozen=True)
class Awq:
    """Multiply the weights of linear layers by ``s = strength**alpha`` along their inputs, divide the inputs by it.

    The strength of a channel is its root mean square over the data. Alpha is searched between 0 and 1 for each input by
    steps of 0.05: the least output error on a sample of `rows` rows. Made for weights of few bits; where the input is
    rounded too, its noise counts. One pass over the data. The division goes into the norm or layer before, or into a
    Mul where that has other readers.
    """

    rows: int = 256

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise FormatError(f"at least one row, not {self.rows}")

    def apply(self, model: BackendModel, data: Dataset | None = None, plan: Plan | None = None) -> TechniqueReport:
        """Scale every input of a linear layer whose weight the plan quantizes."""
        if data is None or plan is None:
            return TechniqueReport("Awq", (), {"model": "it needs data and a plan: apply it through QuantSim"})
        items, left = find_inputs(model.graph, plan)
        return rescale_inputs("Awq", model, plan, data, self.rows, items, left, self._factors)

    def _factors(
        self, model: BackendModel, plan: Plan, item: ScaledInput, seen: SeenInput
    ) -> tuple[float, Floats] | None:
        strength = np.sqrt(seen.ranges.mean_square)
        lively = strength > 0
        if not lively.any():
            return None

        def factors(alpha: float) -> Floats:
            found = np.ones_like(strength)
            found[lively] = strength[lively] ** alpha
            found[lively] /= np.sqrt(found[lively].max() * found[lively].min())
            return np.asarray(found, np.float64)

        return best_alpha(model, plan, item, seen, factors)
