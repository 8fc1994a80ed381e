"""Reader error: the range with the smallest mean square error behind the function that reads the tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from isobit.calibration.channel_error import smallest_channel_errors
from isobit.calibration.error import Bins
from isobit.calibration.reader_functions import Function
from isobit.calibration.scheme import Calibrator
from isobit.calibration.schemes.mse import MeanSquareError
from isobit.calibration.schemes.sqnr import SignalToNoise
from isobit.calibration.search import Costs, best_range
from isobit.encodings.quant_spec import QuantSpec
from isobit.encodings.ranges import Grids
from isobit.statistics.channel_range import ChannelRange
from isobit.statistics.count_bits import counted_by_numpy, kernels
from isobit.statistics.histogram import Histogram

#: Values at which the function is computed in each bin, and the widest grid whose levels are put in a table.
_POINTS, _TABLE_BITS = 4, 8
_GAIN = 0.05  # of a step of the search


@dataclass(frozen=True)
class ReaderError:
    """The range that loses least where it is read.

    A tensor that one elementwise function reads, HardSwish for example, is judged by ``(f(x) - f(q(x)))**2``: no level
    is spent where the function is flat. Other tensors are judged by their own error, where noise from clipping weighs
    `gamma` times, as in `mse` (1) and `sqnr` (3).
    """

    gamma: float = 1.0
    name = "reader-error"
    sums_errors: ClassVar[Literal[True]] = True

    @property
    def elsewhere(self) -> Calibrator:
        """`mse` or `sqnr`."""
        return MeanSquareError() if self.gamma == 1 else SignalToNoise(self.gamma)

    def behind(self, spec: QuantSpec) -> Calibrator:
        """The same for every `gamma`, where errors behind the function are what is searched."""
        return ReaderError() if _has_table(spec) else self

    def range(self, histogram: Histogram, spec: QuantSpec) -> tuple[float, float]:
        """The best range of a tensor of which the readers are not known."""
        return self.elsewhere.range(histogram, spec)

    def range_behind(self, histogram: Histogram, spec: QuantSpec, function: Function) -> tuple[float, float]:
        """The best range of a tensor that `function` alone reads."""
        if not _has_table(spec) or not histogram.counted:
            return self.range(histogram, spec)
        # Behind a function many grids are nearly as good as the best: the last bits must not choose between them.
        return best_range(histogram, spec, _Behind(Bins.of(histogram).thinned(), function), gain=_GAIN)

    def channel_range(self, channels: ChannelRange, spec: QuantSpec) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The range of least expected error in each channel."""
        return smallest_channel_errors(channels, spec)

    @classmethod
    def from_text(cls, value: str | None) -> ReaderError:
        """``reader-error=3``."""
        return cls() if value is None else cls(float(value))


def _has_table(spec: QuantSpec) -> bool:
    return spec.is_integer and spec.bits <= _TABLE_BITS


class _Behind(Costs):
    """Mean square errors of integer grids behind a function, by values that stand for the bins."""

    def __init__(self, bins: Bins, function: Function) -> None:
        shares = (np.arange(_POINTS) + 0.5) / _POINTS
        self._points = (bins.low[:, None] + (bins.high - bins.low)[:, None] * shares).reshape(-1)
        self._weights = np.repeat(bins.counts / (_POINTS * bins.counts.sum()), _POINTS)
        self._function, self._values = function, function(self._points)

    def __call__(self, grids: Grids) -> NDArray[np.float64]:
        scale = grids.scale.astype(np.float64)
        first = grids.spec.q_min - grids.zero_point.astype(np.float64)
        levels = np.arange(grids.spec.q_max - grids.spec.q_min + 1)
        table = self._function((first[:, None] + levels) * scale[:, None])
        if counted_by_numpy():
            return self._errors(table, scale[:, None], first[:, None])
        errors = np.empty(scale.size)
        kernels("isobit.calibration.kernels").table_errors(
            self._points, self._values, self._weights, np.ascontiguousarray(table), scale, first, errors
        )
        return errors

    def _errors(
        self, table: NDArray[np.float64], scale: NDArray[np.float64], first: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """What the kernel computes, by NumPy."""
        index = self._points / scale  # all in place: these arrays are the largest of a calibration, and made 100 times
        np.rint(index, out=index)
        index -= first
        np.clip(index, 0, table.shape[1] - 1, out=index)
        index += np.arange(len(table))[:, None] * table.shape[1]
        errors = table.reshape(-1)[index.astype(np.int32)]
        errors -= self._values
        np.square(errors, out=errors)
        return np.asarray(errors @ self._weights)
