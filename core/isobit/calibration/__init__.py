"""From statistics to encodings: schemes that choose a range, and the encodings of a whole plan."""

from __future__ import annotations

from isobit.calibration.auto import Auto, ComparesSchemes
from isobit.calibration.entropy import Entropy
from isobit.calibration.minmax import MinMaxRange
from isobit.calibration.moving_average import MovingAverage
from isobit.calibration.mse import MeanSquareError
from isobit.calibration.percentile import Percentile
from isobit.calibration.reader_error import ReaderError
from isobit.calibration.scheme import Calibrator, Channelwise, Noting, SeesReaders, parse_calibrator
from isobit.calibration.sqnr import SignalToNoise

__all__ = [
    "Auto",
    "Calibrator",
    "Channelwise",
    "ComparesSchemes",
    "Entropy",
    "MeanSquareError",
    "MinMaxRange",
    "MovingAverage",
    "Noting",
    "Percentile",
    "ReaderError",
    "SeesReaders",
    "SignalToNoise",
    "parse_calibrator",
]
