"""Adam in NumPy.

Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
from numpy.typing import NDArray

_FIRST, _SECOND, _EPSILON = 0.9, 0.999, 1e-8

Floats = NDArray[np.float64]


class Adam:
    """Steps of parameters by name, each with a rate of its own."""

    def __init__(self) -> None:
        self._steps = 0
        self._moments: dict[Hashable, tuple[Floats, Floats]] = {}

    def step(
        self,
        parameters: Mapping[Hashable, Floats],
        gradients: Mapping[Hashable, Floats],
        rates: Mapping[Hashable, float],
    ) -> None:
        """Move the parameters, in place, against their gradients."""
        self._steps += 1
        for name, value in parameters.items():
            gradient = gradients[name]
            first, second = self._moments.setdefault(name, (np.zeros_like(value), np.zeros_like(value)))
            first += (1 - _FIRST) * (gradient - first)
            second += (1 - _SECOND) * (np.square(gradient) - second)
            mean = first / (1 - _FIRST**self._steps)
            power = second / (1 - _SECOND**self._steps)
            value -= rates[name] * mean / (np.sqrt(power) + _EPSILON)
