"""From statistics to encodings: schemes that choose a range, and the encodings of a whole plan."""

from __future__ import annotations

from isobit.calibration.scheme import (
    Calibrator,
    Channelwise,
    HasPlainScheme,
    HasSchemeBehind,
    Noting,
    SeesReaders,
    SumsErrors,
    parse_calibrator,
)
from isobit.calibration.schemes.auto import Auto, ComparesSchemes
from isobit.calibration.schemes.entropy import Entropy
from isobit.calibration.schemes.minmax import MinMaxRange
from isobit.calibration.schemes.moving_average import MovingAverage
from isobit.calibration.schemes.mse import MeanSquareError
from isobit.calibration.schemes.percentile import Percentile
from isobit.calibration.schemes.reader_error import ReaderError
from isobit.calibration.schemes.sqnr import SignalToNoise

__all__ = [
    "Auto",
    "Calibrator",
    "Channelwise",
    "ComparesSchemes",
    "Entropy",
    "HasPlainScheme",
    "HasSchemeBehind",
    "MeanSquareError",
    "MinMaxRange",
    "MovingAverage",
    "Noting",
    "Percentile",
    "ReaderError",
    "SeesReaders",
    "SignalToNoise",
    "SumsErrors",
    "parse_calibrator",
]
