"""The best range of each channel from its minimum, maximum and mean square alone.

Source: Banner, Nahshan, Soudry, "Post training 4-bit quantization of convolutional networks for rapid-deployment",
NeurIPS 2019 (ACIQ), the Laplace case. Values are taken as exponential on each side of zero, with the scale that has
this mean square: ``b = sqrt(mean square / 2)``, which holds for a Laplace distribution and for its positive half alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from isobit.calibration.search import TOLERANCE
from isobit.encodings.quant_spec import QuantSpec
from isobit.encodings.ranges import candidate_grids
from isobit.statistics.channel_range import ChannelRange

_STEPS, _OCTAVES = 32, 8


def smallest_channel_errors(channels: ChannelRange, spec: QuantSpec) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Minimum and maximum to represent in each channel: one threshold on magnitudes, with the least expected error.

    The error is ``2 b**2 exp(-t / b)`` of what lies beyond a threshold t, and ``scale**2 / 12`` of rounding.
    """
    low, high = channels.minimum, channels.maximum
    largest = np.maximum(-low, high)
    spread = np.sqrt(channels.mean_square / 2)
    if not spec.is_integer:
        return low, high
    shares = np.exp2(-np.arange(_STEPS * _OCTAVES) / _STEPS)[:, None]
    # Candidates have 5 mantissa bits, so that rounding errors do not decide between them. The first is all that was
    # seen.
    mantissa, exponent = np.frexp(largest * shares)
    thresholds = np.ldexp(np.floor(mantissa * 64) / 64, exponent)
    thresholds[0] = largest
    lows, highs = np.maximum(low, -thresholds), np.minimum(high, thresholds)
    scale = candidate_grids(lows.reshape(-1), highs.reshape(-1), spec).scale.astype(np.float64)
    error = np.square(scale.reshape(thresholds.shape)) / 12
    two_sided = (low < 0) & (high > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        for end, outermost in ((-lows, -low), (highs, high)):
            beyond = 2 * np.square(spread) * np.exp(-end / spread)
            error += np.where((end < outermost) & (spread > 0), beyond, 0.0) * np.where(two_sided, 0.5, 1.0)
    best = np.argmax(error <= error.min(axis=0) * (1 + TOLERANCE), axis=0)
    columns = np.arange(low.size)
    return lows[best, columns], highs[best, columns]
