"""Techniques: each a frozen dataclass of its settings with one method, `apply`, written once for every backend."""

from __future__ import annotations

from isobit.techniques.ada_round import AdaRound
from isobit.techniques.awq import Awq
from isobit.techniques.balance_channels import BalanceChannels
from isobit.techniques.context import Observations, Requests, TechniqueContext
from isobit.techniques.correct_bias import CorrectBias
from isobit.techniques.equalize_cross_layers import EqualizeCrossLayers
from isobit.techniques.fold_batch_norms import FoldBatchNorms
from isobit.techniques.gptq import GPTQ
from isobit.techniques.pruning.prune_channels import PruneChannels
from isobit.techniques.pruning.sparsify_weights import SparsifyWeights
from isobit.techniques.reconstruct_blocks import ReconstructBlocks
from isobit.techniques.reestimate_batch_norms import ReestimateBatchNorms
from isobit.techniques.sequential_mse import SequentialMse
from isobit.techniques.smooth_quant import SmoothQuant
from isobit.techniques.spatial_svd import SpatialSvd
from isobit.techniques.technique import Compresses, Observes, Technique, TechniqueReport
from isobit.techniques.tucker_2 import Tucker2
from isobit.techniques.weight_svd import WeightSvd

__all__ = [
    "GPTQ",
    "AdaRound",
    "Awq",
    "BalanceChannels",
    "Compresses",
    "CorrectBias",
    "EqualizeCrossLayers",
    "FoldBatchNorms",
    "Observations",
    "Observes",
    "PruneChannels",
    "ReconstructBlocks",
    "ReestimateBatchNorms",
    "Requests",
    "SequentialMse",
    "SmoothQuant",
    "SparsifyWeights",
    "SpatialSvd",
    "Technique",
    "TechniqueContext",
    "TechniqueReport",
    "Tucker2",
    "WeightSvd",
]
