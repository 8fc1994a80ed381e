"""Learning from the float model: which outputs are compared, how, and the reference of the loss in NumPy."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from isobit.errors import FormatError, did_you_mean


@dataclass(frozen=True)
class DistillationSettings:
    """`outputs` are those that are compared (None: all), `weight` is the factor of the loss.

    With a `temperature` they are logits of classes on the last axis: the loss is the cross entropy of the teacher's
    softened probabilities less their entropy, times the temperature squared (Hinton et al. 2015, arXiv 1503.02531,
    section 2), the mean over all positions. Without one it is the squared difference relative to the teacher's mean
    square, so that outputs of any size count alike. Several outputs are averaged. Raises FormatError.
    """

    temperature: float | None = None
    outputs: str | Sequence[str] | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("temperature", self.temperature), ("weight", self.weight)):
            if value is not None and not (0 < value < float("inf")):
                raise FormatError(f"{name} is a number above 0, not {value!r}")

    def chosen(self, known: Collection[str]) -> list[str]:
        """The names of the outputs that are compared. Raises FormatError for one that the model does not have."""
        if self.outputs is None:
            return list(known)
        asked = [self.outputs] if isinstance(self.outputs, str) else list(self.outputs)
        odd = next((name for name in asked if name not in known), None)
        if odd is not None or not asked:
            raise FormatError(
                f"the model has no float output {odd!r}{did_you_mean(str(odd), known)}; it has {', '.join(known)}"
            )
        return asked


def distillation_loss(student: ArrayLike, teacher: ArrayLike, temperature: float | None = None) -> float:
    """The loss of one output, before `weight`: the reference that every backend follows."""
    outputs, wanted = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    if temperature is None:
        return float(np.square(outputs - wanted).mean() / max(np.square(wanted).mean(), SMALLEST))
    logs = [_log_softmax(values / temperature) for values in (outputs, wanted)]
    return float((np.exp(logs[1]) * (logs[1] - logs[0])).sum(-1).mean() * temperature**2)


#: A teacher's mean square below this counts as this.
SMALLEST = 1e-12


def _log_softmax(values: np.ndarray) -> np.ndarray:
    shifted = values - values.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))
