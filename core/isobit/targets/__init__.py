"""Targets: what a runtime quantizes, in which formats, as data in TOML files."""

from __future__ import annotations

from isobit.targets.convolution_costs import ConvolutionCosts
from isobit.targets.costs import Costs
from isobit.targets.target import Target, load_target, parse_target

__all__ = [
    "ConvolutionCosts",
    "Costs",
    "Target",
    "load_target",
    "parse_target",
]
