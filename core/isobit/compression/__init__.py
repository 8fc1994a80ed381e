"""Networks made smaller under a budget, with what was done in words and as a recipe."""

from __future__ import annotations

from isobit.compression.compress import Compressed, compress
from isobit.compression.compression_report import CompressedLayer, CompressionReport, Trial

__all__ = ["Compressed", "CompressedLayer", "CompressionReport", "Trial", "compress"]
