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

from isobit.backend.checked_model import CheckedModel
from isobit.errors import FormatError
from isobit.techniques.context import Requests, TechniqueContext
from isobit.techniques.input_scaling.expected_error import ExpectedError, best_alpha, in_steps_of_range, input_requests
from isobit.techniques.input_scaling.procedure import rescalable, rescale_inputs
from isobit.techniques.input_scaling.rescaling import Rescaling, ScaledInput, find_inputs, input_placement
from isobit.techniques.layers.weighted_layer import Floats
from isobit.techniques.technique import TechniqueReport


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

    @property
    def uses_data(self) -> bool:
        """Always."""
        return True

    def requests(self, context: TechniqueContext) -> Requests:
        """Ranges and moments of the channels of each input."""
        return input_requests(self._inputs(context)[0])

    def apply(self, context: TechniqueContext) -> TechniqueReport:
        """Smooth every input of a quantized linear layer that the plan quantizes too."""
        items, left = self._inputs(context)
        return rescale_inputs("SmoothQuant", context, items, left, self._choose)

    def _inputs(self, context: TechniqueContext) -> tuple[list[ScaledInput], dict[str, str]]:
        items, left = find_inputs(context.graph, context.plan)
        in_float = [item for item in items if input_placement(item.readers[0], context.plan) is None]
        left.update({item.name: "its input stays in float" for item in in_float})
        return rescalable(context, [item for item in items if item not in in_float], left)

    def _choose(self, model: CheckedModel, item: ScaledInput, error: ExpectedError) -> Rescaling | None:
        weights = [np.abs(model.weight(node.inputs[1] or "")) for node in item.readers]
        heaviest = np.max([weight.max(axis=0, initial=0.0) for weight in weights], axis=0).astype(np.float64)
        moments, nowhere = error.moments, np.zeros_like(heaviest)
        if not ((moments.largest() > 0) & (heaviest > 0)).any():
            return None
        if self.alpha is not None:
            return _family(moments.largest(), heaviest, nowhere, "")(self.alpha)
        shifts = {"": nowhere}
        if self.shift and item.shiftable:
            middle, mean = in_steps_of_range(moments.middle, moments), in_steps_of_range(moments.mean, moments)
            shifts.update({", middle subtracted": middle, ", mean subtracted": mean})
        return best_alpha(
            error, [_family(moments.largest(shift), heaviest, shift, words) for words, shift in shifts.items()]
        )


def _family(largest: Floats, heaviest: Floats, shift: Floats, words: str) -> Callable[[float], Rescaling]:
    """The rescaling for each alpha; the geometric mean of the factors is 1."""
    lively = (largest > 0) & (heaviest > 0)

    def rescaling(alpha: float) -> Rescaling:
        factors = np.ones_like(largest)
        factors[lively] = largest[lively] ** alpha / heaviest[lively] ** (1 - alpha)
        if lively.any():  # after a shift, no channel may reach anywhere
            factors[lively] /= np.exp(np.log(factors[lively]).mean())
        return Rescaling(factors, shift, f"alpha {alpha:g}{words}")

    return rescaling
