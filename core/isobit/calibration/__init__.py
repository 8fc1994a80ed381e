"""Calibration schemes: pure functions from a Histogram and a QuantSpec to a range."""

from __future__ import annotations

from isobit.calibration.minmax import MinMaxRange
from isobit.calibration.percentile import Percentile
from isobit.calibration.scheme import Calibrator, parse_calibrator

__all__ = ["Calibrator", "MinMaxRange", "Percentile", "parse_calibrator"]
