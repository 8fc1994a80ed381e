"""Techniques: each a frozen dataclass of its settings with one method, `apply`, written once for every backend."""

from __future__ import annotations

from isobit.techniques.fold_batch_norms import FoldBatchNorms
from isobit.techniques.technique import Technique, TechniqueReport

__all__ = ["FoldBatchNorms", "Technique", "TechniqueReport"]
