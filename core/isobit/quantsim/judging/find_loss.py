"""Which of the two costs the outputs more, the rounding of weights or that of activations: one measurement of each."""

from __future__ import annotations

from dataclasses import dataclass

from isobit.calibration.simulated_copy import quantized_copy
from isobit.quantsim.judging.judge import Judge, mean
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


def find_loss(context: TechniqueContext, judge: Judge) -> Loss:
    """Measure on the samples of the judge. The ranges must have been observed (`TechniqueContext.observe`)."""
    encodings = context.encodings()
    figures = {}
    for what, kinds in (("weights", ("weight", "constant")), ("activations", ("activation",))):
        alone = {site: e for site, e in encodings.items() if context.plan.placements[site].kind in kinds}
        figures[what] = mean(judge.ratios(quantized_copy(context.model, alone)))
    return Loss(**figures)
