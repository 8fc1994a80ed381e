"""Values as a page draws them: counted in bins of one width, and the ranges of channels before and on the grid."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.encodings.encoding import Encoding
from isobit.statistics.histogram import Histogram

#: Bins of a histogram that is drawn, and channels whose ranges are.
_BINS, _DRAWN = 96, 256

Ranges = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Counted:
    """Values counted in bins of one width between `low` and `high`."""

    low: float
    high: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class DrawnValues:
    """What is drawn of the values of a tensor.

    A histogram over all of them and the whole grid, and the ranges of the first channels, as they are and on the grid.
    None and empty where there is nothing to draw.
    """

    histogram: Counted | None = None
    channel_ranges: Ranges = ()
    ranges_on_grid: Ranges = ()

    @classmethod
    def of(cls, values: NDArray[Any], encoding: Encoding, axis: int | None) -> DrawnValues:
        """Of values that are there, with channels along `axis`."""
        finite = values[np.isfinite(values)]
        if not finite.size:
            return cls()
        low, high = _ends(float(finite.min()), float(finite.max()), encoding)
        if not high > low:
            return cls()
        counts, _ = np.histogram(finite, _BINS, (low, high))
        found = cls(Counted(_short(low), _short(high), tuple(int(count) for count in counts)))
        if axis is None or values.ndim < 2:
            return found
        # Rounding whole values, since blocks of one channel may have grids of their own.
        return replace(
            found,
            channel_ranges=_by_channel(values, axis),
            ranges_on_grid=_by_channel(encoding.fake_quantize(values), axis),
        )

    @classmethod
    def of_histogram(cls, seen: Histogram, encoding: Encoding) -> DrawnValues:
        """Of values that were counted."""
        if seen.is_empty:
            return cls()
        low, high = _ends(seen.minimum, seen.maximum, encoding)
        if not high > low:
            return cls()
        below, above, counts = seen.bins()
        total = np.cumsum(counts)
        places = np.stack([below, above], 1).reshape(-1)
        reached = np.stack([total - counts, total], 1).reshape(-1)
        edges = np.interp(np.linspace(low, high, _BINS + 1), places, reached, left=0)
        parts = np.diff(np.rint(edges)).astype(int)
        return cls(Counted(_short(low), _short(high), tuple(map(int, parts))))

    def with_ranges(self, low: NDArray[Any], high: NDArray[Any], encoding: Encoding) -> DrawnValues:
        """With the ranges of channels whose values are not there: rounding keeps their order, so ends become ends."""
        if low.size < 2:
            return self
        ends = np.stack([low, high], 1).astype(np.float32)
        grid = encoding
        if encoding.axis is not None:
            grid = Encoding(encoding.spec, encoding.scale, encoding.zero_point, 0)
        rounded = grid.fake_quantize(np.where(np.isfinite(ends), ends, 0))
        return replace(
            self, channel_ranges=_ranges(ends[:, 0], ends[:, 1]), ranges_on_grid=_ranges(rounded[:, 0], rounded[:, 1])
        )


def _ends(low: float, high: float, encoding: Encoding) -> tuple[float, float]:
    if not encoding.spec.is_integer:
        return low, high
    return min(low, float(encoding.minimum.min())), max(high, float(encoding.maximum.max()))


def _by_channel(values: NDArray[Any], axis: int) -> Ranges:
    if not values.size:
        return ()
    rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    return _ranges(rows.min(1), rows.max(1))


def _ranges(low: NDArray[Any], high: NDArray[Any]) -> Ranges:
    """The ranges of the first channels, none where there is one alone."""
    if low.size < 2:
        return ()
    return tuple((_short(a), _short(b)) for a, b in zip(low[:_DRAWN], high[:_DRAWN], strict=True))


def _short(value: float) -> float:
    """With so many digits as a drawing shows."""
    return float(f"{float(value):.5g}")
