"""What hurts in a quantized network, why, and what would repair it."""

from __future__ import annotations

from isobit.analysis.analysis import Analysis
from isobit.analysis.analyze import analyze
from isobit.analysis.findings import Advice, DataJudged, Depth, Drift, Drifted, RangeSetter, SiteError

__all__ = ["Advice", "Analysis", "DataJudged", "Depth", "Drift", "Drifted", "RangeSetter", "SiteError", "analyze"]
