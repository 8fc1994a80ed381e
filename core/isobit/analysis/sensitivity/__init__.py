"""Every quantizer off alone, or on alone: what lies before it is computed once for all of them."""

from __future__ import annotations

from isobit.analysis.sensitivity.how_measured import Measure, Sensitivity
from isobit.analysis.sensitivity.measure_sites import MeasuredSites, measure_sites

__all__ = ["Measure", "MeasuredSites", "Sensitivity", "measure_sites"]
