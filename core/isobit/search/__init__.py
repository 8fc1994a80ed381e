"""Finding formats and recipes for a user: mixed precision, and everything tried until a drop is held."""

from __future__ import annotations

from isobit.search.auto_quantize import auto_quantize
from isobit.search.auto_result import Attempt, AutoResult
from isobit.search.mixed_precision import mixed_precision
from isobit.search.mixed_result import GroupFormat, MixedPrecision, Point

__all__ = ["Attempt", "AutoResult", "GroupFormat", "MixedPrecision", "Point", "auto_quantize", "mixed_precision"]
