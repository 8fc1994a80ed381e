"""Which tensors and weights are quantized, and in which format: from a graph, a target and what the user chose."""

from __future__ import annotations

from isobit.placement.place import place
from isobit.placement.plan import Kind, Placement, Plan
from isobit.placement.quant_config import QuantConfig

__all__ = [
    "Kind",
    "Placement",
    "Plan",
    "QuantConfig",
    "place",
]
