"""AWQ: weights that meet strong input channels are made larger before they are rounded, the inputs smaller.

Source: Lin et al., "AWQ: Activation-aware Weight Quantization for On-Device LLM Compression and Acceleration",
MLSys 2024, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isobit.backend.checked_model import CheckedModel
from isobit.techniques.context import Requests, TechniqueContext
from isobit.techniques.input_scaling.expected_error import ExpectedError, best_alpha, input_requests
from isobit.techniques.input_scaling.procedure import rescalable, rescale_inputs
from isobit.techniques.input_scaling.rescaling import Rescaling, ScaledInput, find_inputs
from isobit.techniques.technique import TechniqueReport


@dataclass(frozen=True)
class Awq:
    """Multiply the weights of linear layers by ``s = strength**alpha`` along their inputs, divide the inputs by it.

    The strength of a channel is its root mean square over the data. Alpha is searched between 0 and 1 for each input by
    steps of 0.05: the least output error that the rounding of the weights is expected to make. Made for weights of few
    bits; where the input is rounded too, its noise counts. One pass over the data. The division goes into the norm or
    layer before, or into a Mul where that has other readers.
    """

    @property
    def uses_data(self) -> bool:
        """Always."""
        return True

    def requests(self, context: TechniqueContext) -> Requests:
        """Ranges and moments of the channels of each input."""
        return input_requests(self._inputs(context)[0])

    def apply(self, context: TechniqueContext) -> TechniqueReport:
        """Scale every input of a linear layer whose weight the plan quantizes."""
        items, left = self._inputs(context)
        return rescale_inputs("Awq", context, items, left, self._choose)

    def _inputs(self, context: TechniqueContext) -> tuple[list[ScaledInput], dict[str, str]]:
        items, left = find_inputs(context.graph, context.plan)
        return rescalable(context, items, left)

    def _choose(self, model: CheckedModel, item: ScaledInput, error: ExpectedError) -> Rescaling | None:
        strength = np.sqrt(error.moments.mean_square())
        lively = strength > 0
        if not lively.any():
            return None

        def rescaling(alpha: float) -> Rescaling:
            factors = np.ones_like(strength)
            factors[lively] = strength[lively] ** alpha
            factors[lively] /= np.sqrt(factors[lively].max() * factors[lively].min())
            return Rescaling(factors, np.zeros_like(factors), f"alpha {alpha:g}")

        return best_alpha(error, [rescaling])
