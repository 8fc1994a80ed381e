"""Calibration schemes: pure functions from a Histogram and a QuantSpec to a range."""

from __future__ import annotations

from isobit.calibration.entropy import Entropy
from isobit.calibration.minmax import MinMaxRange
from isobit.calibration.moving_average import MovingAverage
from isobit.calibration.mse import MeanSquareError
from isobit.calibration.percentile import Percentile
from isobit.calibration.scheme import Calibrator, parse_calibrator
from isobit.calibration.sqnr import SignalToNoise

__all__ = [
    "Calibrator",
    "Entropy",
    "MeanSquareError",
    "MinMaxRange",
    "MovingAverage",
    "Percentile",
    "SignalToNoise",
    "parse_calibrator",
]
