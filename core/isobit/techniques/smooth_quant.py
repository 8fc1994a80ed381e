"""SmoothQuant: channels of an activation that are far larger than the others become smaller, their weights larger.

Sources: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
ICML 2023; Wei et al., "Outlier Suppression+: Accurate Quantization of Large Language Models by Equivalent and Effective
Shifting and Scaling", EMNLP 2023 (the shift). Alpha and shift are searched here for each input by the output error that
both roundings are expected to make.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from isobit.backend import BackendModel
from isobit.data import Dataset
from isobit.errors import FormatError
from isobit.plan import Plan
from isobit.techniques.input_errors import ExpectedError, best_alpha
from isobit.techniques.input_rescaling import rescale_inputs
from isobit.techniques.input_scaling import Rescaling, ScaledInput, find_inputs, input_placement
from isobit.techniques.technique import TechniqueReport
from isobit.techniques.weighted_layer import Floats


@dataclass(frozen=True)
class SmoothQuant:
    """Divide each input channel of linear layers by ``s = max|x|**alpha / max|w|**(1 - alpha)``, multiply its weights.

    `alpha` None searches for each input the least output error that the roundings of input and weights are expected to
    make on new data: alpha between 0 and 1 by steps of 0.05; with `shift` also each channel's middle or mean subtracted
    first, which the biases take up; and nothing at all. One pass over the data, for ranges and moments. The change goes
    into the norm or layer before, or into a Mul (and an Add) where that has other readers. A given `alpha` is the
    paper's formula, without a shift. Factors and shifts have few bits (`Rescaling.snapped`).
    """

    alpha: float | None = None
    shift: bool = True

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise FormatError(f"alpha lies between 0 and 1, not {self.alpha}")

    def apply(self, model: BackendModel, data: Dataset | None = None, plan: Plan | None = None) -> TechniqueReport:
        """Smooth every input of a quantized linear layer that the plan quantizes too."""
        if data is None or plan is None:
            return TechniqueReport("SmoothQuant", (), {"model": "it needs data and a plan: apply it through QuantSim"})
        items, left = find_inputs(model.graph, plan)
        left.update({i.name: "its input stays in float" for i in items if input_placement(i.readers[0], plan) is None})
        return rescale_inputs("SmoothQuant", model, plan, data, items, left, self._choose)

    def _choose(self, model: BackendModel, item: ScaledInput, error: ExpectedError) -> Rescaling | None:
        weights = [np.abs(model.weight(node.inputs[1] or "")) for node in item.readers]
        heaviest = np.max([weight.max(axis=0, initial=0.0) for weight in weights], axis=0).astype(np.float64)
        seen, nowhere = error.seen, np.zeros_like(heaviest)
        if not ((seen.largest() > 0) & (heaviest > 0)).any():
            return None
        if self.alpha is not None:
            return _family(seen.largest(), heaviest, nowhere, "")(self.alpha)
        shifts = {"": nowhere}
        if self.shift and item.shiftable:
            middle, mean = seen.snapped(seen.middle), seen.snapped(seen.mean)
            shifts.update({", middle subtracted": middle, ", mean subtracted": mean})
        return best_alpha(
            error, [_family(seen.largest(shift), heaviest, shift, words) for words, shift in shifts.items()]
        )


def _family(largest: Floats, heaviest: Floats, shift: Floats, words: str) -> Callable[[float], Rescaling]:
    """The rescaling for each alpha; the geometric mean of the factors is 1."""
    lively = (largest > 0) & (heaviest > 0)

    def rescaling(alpha: float) -> Rescaling:
        factors = np.ones_like(largest)
        factors[lively] = largest[lively] ** alpha / heaviest[lively] ** (1 - alpha)
        factors[lively] /= np.exp(np.log(factors[lively]).mean())
        return Rescaling(factors, shift, f"alpha {alpha:g}{words}")

    return rescaling
