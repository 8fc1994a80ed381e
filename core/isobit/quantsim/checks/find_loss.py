"""Which of the two costs the outputs more, the rounding of weights or that of activations: one measurement of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from isobit.calibration.simulated_copy import quantized_copy
from isobit.data import Batch
from isobit.quantsim.checks.quality import Outputs, sample_decibels
from isobit.techniques.context import TechniqueContext

#: Decibels by which weights alone are better than activations alone where they are not the loss: without any error of
#: weights the outputs would gain 0.4 dB.
_NOT_THE_LOSS = 10.0


@dataclass(frozen=True)
class Loss:
    """Decibels of the outputs with the weights alone quantized, and with the activations alone."""

    weights: float
    activations: float

    @property
    def is_of_weights(self) -> bool:
        """Whether something is gained by weights that are rounded better."""
        return self.weights < self.activations + _NOT_THE_LOSS

    def __str__(self) -> str:
        return f"weights alone {self.weights:.1f} dB, activations alone {self.activations:.1f} dB"


def find_loss(context: TechniqueContext, judged: Iterable[tuple[Batch, Outputs]]) -> Loss:
    """Measure on samples and the outputs that the float model gives for them.

    The ranges must have been observed (`TechniqueContext.observe`). The figures are means over samples.
    """
    encodings, judged = context.encodings(), list(judged)
    figures = {}
    for what, kinds in (("weights", ("weight", "constant")), ("activations", ("activation",))):
        alone = {site: e for site, e in encodings.items() if context.plan.placements[site].kind in kinds}
        copy = quantized_copy(context.model, alone)
        ratios = [ratio for batch, exact in judged for ratio in sample_decibels(exact, copy.run(batch))]
        figures[what] = float(np.mean(ratios)) if ratios else 200.0
    return Loss(**figures)
