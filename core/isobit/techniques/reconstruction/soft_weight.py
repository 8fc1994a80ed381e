"""A weight between two integers of its grid, each of its values at a place of its own that a descent moves.

Source: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020, equation 23 (the
rectified sigmoid). That values settle a share at a time, the nearest to an integer first, while the others make up for
it, is from Zhou et al., "Incremental Network Quantization", ICLR 2017, in place of a regulariser.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from isobit.encodings.encoding import Encoding
from isobit.encodings.quant_spec import Lpbq
from isobit.encodings.ranges import smallest_scale
from isobit.training.kept_zeros import is_sparse

Floats = NDArray[np.float64]

#: The sigmoid is stretched to [-0.1, 1.1] and cut off, so that it reaches 0 and 1.
_LOW, _HIGH = -0.1, 1.1
#: A place of a float weight starts no nearer to its ends than this, for there is no gradient at them.
_MARGIN = 1e-2
#: Where a value starts between the integer that was chosen for it, 0, and the float weight, 1.
_FLOAT = 0.3
#: A place at which the sigmoid is cut off.
_END = 10.0


class SoftWeight:
    """The weight ``scale * (lower + h - zero point)`` with `h` between 0 and 1, and `parameters` that a descent moves.

    `start` are the integers that a hard rounding chose: each value lies between that integer and the next one towards
    the float weight, and starts half way. What is settled is an integer for good; the zeros of a sparse weight stay.
    Scales are learned as logarithms, but for LPBQ, whose scales are products.
    """

    def __init__(self, weight: NDArray[np.float32], encoding: Encoding, start: NDArray[np.integer]) -> None:
        self._encoding = encoding
        scale, zero_point = encoding.broadcast(weight.shape)
        exact = weight.astype(np.float64) / scale + zero_point
        lower = np.where(start > exact, start - 1, start)
        self.lower = np.clip(lower, encoding.spec.q_min, encoding.spec.q_max - 1).astype(np.float64)
        chosen = np.clip(start - self.lower, 0, 1)
        place = _FLOAT * np.clip(exact - self.lower, 0, 1) + (1 - _FLOAT) * chosen
        place = np.clip(place, _MARGIN, 1 - _MARGIN)
        ratio = (place - _LOW) / (_HIGH - _LOW)
        self.parameters: dict[str, Floats] = {"place": np.log(ratio / (1 - ratio))}
        self._is_settled, self._ends = np.zeros(weight.shape, np.bool_), np.zeros(weight.shape)
        self._zero_point: Floats = np.broadcast_to(zero_point, weight.shape).astype(np.float64)
        self._held = (weight == 0) & is_sparse(weight)
        self._owner = _owner(encoding, weight.shape)
        self.learns_scale = not isinstance(encoding.spec.granularity, Lpbq)
        if self.learns_scale:
            self.parameters["log_scale"] = np.zeros(encoding.scale.size)

    @property
    def h(self) -> Floats:
        """Where each value is between its two integers."""
        places = np.clip(_sigmoid(self.parameters["place"]) * (_HIGH - _LOW) + _LOW, 0, 1)
        return np.where(self._held, self._zero_point - self.lower, places)

    @property
    def encoding(self) -> Encoding:
        """The grid with the scales as they are."""
        if not self.learns_scale:
            return self._encoding
        least = smallest_scale(self._encoding.spec)
        scale = self._encoding.scale * np.exp(self.parameters["log_scale"]).reshape(self._encoding.scale.shape)
        return replace(self._encoding, scale=np.maximum(scale, least).astype(np.float32))

    def value(self, *, hard: bool = False) -> NDArray[np.float32]:
        """The weight, with each value at the nearer integer where it is to be `hard`."""
        h: Floats = np.rint(self.h) if hard else self.h
        return ((self.lower + h - self._zero_point) * self._scales()).astype(np.float32)

    def gradient(self, by_value: NDArray[np.floating]) -> dict[str, Floats]:
        """The gradient by the parameters, from that by the weight's values."""
        h, scale = self.h, self._scales()
        gradients = {"place": by_value * scale * self._slope(h)}
        if self.learns_scale:
            by_log = by_value * scale * (self.lower + h - self._zero_point)
            summed = np.bincount(self._owner.reshape(-1), by_log.reshape(-1), minlength=self._encoding.scale.size)
            gradients["log_scale"] = summed.astype(np.float64)
        return gradients

    def settle(self, share: float) -> None:
        """Let at least this share of all values be integers for good; the next are those that are nearest to one."""
        count = int(np.ceil(share * self._is_settled.size)) - int(self._is_settled.sum())
        if count > 0:
            away = np.where(self._is_settled, -1.0, np.abs(2 * self.h - 1)).reshape(-1)
            chosen = np.argpartition(-away, count - 1)[:count]
            self._is_settled.flat[chosen] = True
            self._ends.flat[chosen] = np.where(self.parameters["place"].flat[chosen] > 0, _END, -_END)
        np.copyto(self.parameters["place"], self._ends, where=self._is_settled)

    def _slope(self, h: Floats) -> Floats:
        """How fast `h` follows its parameter."""
        s = _sigmoid(self.parameters["place"])
        return np.where((h > 0) & (h < 1), (_HIGH - _LOW) * s * (1 - s), 0.0)

    def _scales(self) -> Floats:
        return self.encoding.scale.reshape(-1).astype(np.float64)[self._owner]


def _sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))


def _owner(encoding: Encoding, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """The number of the scale that each value of a weight has."""
    numbers = np.arange(encoding.scale.size, dtype=np.float32).reshape(encoding.scale.shape)
    counted = replace(encoding, scale=numbers + 1, multiplier=None, channel_scale=None)
    return np.broadcast_to(np.rint(counted.broadcast(shape)[0]).astype(np.int64) - 1, shape)
