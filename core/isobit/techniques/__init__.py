"""Techniques: each a frozen dataclass of its settings with one method, `apply`, written once for every backend."""

from __future__ import annotations

from isobit.techniques.ada_round import AdaRound
from isobit.techniques.fold_batch_norms import FoldBatchNorms
from isobit.techniques.gptq import GPTQ
from isobit.techniques.sequential_mse import SequentialMse
from isobit.techniques.technique import Technique, TechniqueReport

__all__ = ["GPTQ", "AdaRound", "FoldBatchNorms", "SequentialMse", "Technique", "TechniqueReport"]
