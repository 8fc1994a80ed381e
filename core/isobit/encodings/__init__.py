"""Number formats and grids: what a quantized tensor's integers mean."""

from __future__ import annotations

from isobit.encodings.encoding import Encoding, Encodings
from isobit.encodings.learned_grid import LearnedGrid
from isobit.encodings.quant_spec import Granularity, Lpbq, PerBlock, PerChannel, PerTensor, QuantSpec
from isobit.encodings.ranges import encode_range, encode_weight
from isobit.encodings.relations import Relations

__all__ = [
    "Encoding",
    "Encodings",
    "Granularity",
    "LearnedGrid",
    "Lpbq",
    "PerBlock",
    "PerChannel",
    "PerTensor",
    "QuantSpec",
    "Relations",
    "encode_range",
    "encode_weight",
]
