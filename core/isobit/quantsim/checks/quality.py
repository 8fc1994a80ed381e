"""How near the simulator is to the float model, as a figure and in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Outputs = Mapping[str, NDArray[Any]]

_WORDS = ((40.0, "excellent"), (30.0, "good"), (20.0, "fair"))

#: What to try where the result is poor.
ADVICE = "that is poor: try recipe='ptq' (or 'transformer'), then method='mse', then activations='int16'"


def sqnr(exact: Outputs, other: Outputs) -> dict[str, float]:
    """Decibels of each float output that both have; infinite where they are equal."""
    return {
        name: decibels(values, other[name])
        for name, values in exact.items()
        if values.dtype.kind == "f" and name in other and values.shape == other[name].shape and values.size
    }


def decibels(exact: NDArray[Any], other: NDArray[Any]) -> float:
    """Signal to noise over the elements that are finite in both; infinite without noise."""
    signal, noisy = exact.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    finite = np.isfinite(signal) & np.isfinite(noisy)
    signal, noise = signal[finite], noisy[finite] - signal[finite]
    power, error = float(signal @ signal), float(noise @ noise)
    if error == 0:
        return math.inf
    return 10 * math.log10(power / error) if power > 0 else -math.inf


def judgement(ratio: float) -> str:
    """A signal-to-noise ratio in one word: excellent, good, fair or poor."""
    return next((word for least, word in _WORDS if ratio >= least), "poor")


def judged(ratio: float) -> str:
    """``34.2 dB, good``."""
    return "equal, excellent" if ratio == math.inf else f"{ratio:.1f} dB, {judgement(ratio)}"
