"""SmoothQuant: channels of an activation that are far larger than the others become smaller, their weights larger.

Source: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
ICML 2023; alpha is searched here for each input by the output error that both roundings are expected to make.
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
from isobit.techniques.input_scaling import ScaledInput, find_inputs, input_placement
from isobit.techniques.technique import TechniqueReport
from isobit.techniques.weighted_layer import Floats


@dataclass(frozen=True)
class SmoothQuant:
    """Divide each input channel of linear layers by ``s = max|x|**alpha / max|w|**(1 - alpha)``, multiply its weights.

    `alpha` None searches between 0 and 1 for each input, by steps of 0.05, and no factors at all: the least expected
    output error, from the rounding noise of the activation's grid and the rounding errors of the weights on a sample of
    `rows` rows. One pass over the data. The division goes into the norm or layer before, or into a Mul where that has
    other readers.
    """

    alpha: float | None = None
    rows: int = 256

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise FormatError(f"alpha lies between 0 and 1, not {self.alpha}")
        if self.rows < 1:
            raise FormatError(f"at least one row, not {self.rows}")

    def apply(self, model: BackendModel, data: Dataset | None = None, plan: Plan | None = None) -> TechniqueReport:
        """Smooth every input of a quantized linear layer that the plan quantizes too."""
        if data is None or plan is None:
            return TechniqueReport("SmoothQuant", (), {"model": "it needs data and a plan: apply it through QuantSim"})
        items, left = find_inputs(model.graph, plan)
        left.update({i.name: "its input stays in float" for i in items if input_placement(i.readers[0], plan) is None})
        return rescale_inputs("SmoothQuant", model, plan, data, self.rows, items, left, self._factors)

    def _factors(
        self, model: BackendModel, plan: Plan, item: ScaledInput, seen: SeenInput
    ) -> tuple[float, Floats] | None:
        weights = [model.weight(node.inputs[1] or "").astype(np.float64) for node in item.readers]
        heaviest = np.max([np.abs(weight).max(axis=0, initial=0.0) for weight in weights], axis=0)
        largest = seen.ranges.largest
        lively = (largest > 0) & (heaviest > 0)
        if not lively.any():
            return None

        def factors(alpha: float) -> Floats:
            found = np.ones_like(heaviest)
            found[lively] = largest[lively] ** alpha / heaviest[lively] ** (1 - alpha)
            found[lively] /= np.exp(np.log(found[lively]).mean())
            return np.asarray(found, np.float64)

        if self.alpha is not None:
            return self.alpha, factors(self.alpha)
        return best_alpha(model, plan, item, seen, factors)
