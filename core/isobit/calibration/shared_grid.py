"""The values of tensors that share a grid, as a scheme sees them."""

from __future__ import annotations

from collections.abc import Sequence

from isobit.calibration.scheme import Calibrator, SumsErrors
from isobit.statistics.histogram import Histogram

#: Parts count by what they hold where one holds so many times less than another. Below, all values count alike.
_UNEQUAL = 16
#: At most so many times, also a part that holds less than the inverse of it; below the inverse of its square a part is
#: lost on any grid that holds the others, and counts as all values do.
_MOST = 1024


def together(histograms: Sequence[Histogram], calibrator: Calibrator) -> Histogram:
    """The histogram of a group's tensors, each of which was seen on the same batches.

    A sum of square errors sees the largest part alone: a grid for values up to 100 costs values up to 5 everything and
    the sum next to nothing. What counts later on is the noise of each part over its own signal, so for a scheme that
    sums errors the values of a small part count as often as its energy is smaller, rounded to a power of two.
    """
    if len(histograms) == 1:
        return histograms[0]
    energies = [histogram.energy() for histogram in histograms]
    largest = max(energies)
    ratios = [min(largest / energy, _MOST) if energy * _MOST * _MOST > largest else 1.0 for energy in energies]
    sums_errors = isinstance(calibrator, SumsErrors) and calibrator.sums_errors
    weighed = sums_errors and max(ratios) >= _UNEQUAL
    total = histograms[0].blank()
    for histogram, ratio in zip(histograms, ratios, strict=True):
        total.join(histogram.repeated(_power_of_two(ratio)) if weighed else histogram)
    return total


def _power_of_two(ratio: float) -> int:
    power = 1
    while power * power * 2 < ratio * ratio:
        power *= 2
    return power
