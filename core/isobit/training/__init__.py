"""Quantization-aware training: what is decided of it before a framework trains."""

from __future__ import annotations

from isobit.training.beside_adapters import check_formats
from isobit.training.distillation import DistillationSettings, distillation_loss
from isobit.training.learned_grids import learned_grids
from isobit.training.left_grids import left_grids_noticed
from isobit.training.modes import MODES, TrainingModes

__all__ = [
    "MODES",
    "DistillationSettings",
    "TrainingModes",
    "check_formats",
    "distillation_loss",
    "learned_grids",
    "left_grids_noticed",
]
