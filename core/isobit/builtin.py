"""isobit's own targets, schemes, techniques and formats, registered through the same hooks as a stranger's."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobit.plugins import hookimpl

if TYPE_CHECKING:
    from isobit.formats.format import EncodingsFormat


@hookimpl
def isobit_targets() -> Sequence[Path]:
    """The target files in ``isobit/targets``."""
    folder = Path(str(files("isobit") / "targets"))
    return sorted(folder.glob("*.toml"))


@hookimpl
def isobit_calibrators() -> Sequence[type[Any]]:
    """Every scheme of `isobit.calibration`."""
    from isobit import calibration as c

    return [
        c.Auto,
        c.ReaderError,
        c.MinMaxRange,
        c.MovingAverage,
        c.Percentile,
        c.Entropy,
        c.MeanSquareError,
        c.SignalToNoise,
    ]


@hookimpl
def isobit_techniques() -> Sequence[type[Any]]:
    """Batch norm folding and re-estimation, equalization, bias correction, scaling, rounding, low rank, pruning."""
    from isobit import techniques

    return [
        techniques.AdaRound,
        techniques.Awq,
        techniques.BalanceChannels,
        techniques.CorrectBias,
        techniques.EqualizeCrossLayers,
        techniques.FoldBatchNorms,
        techniques.GPTQ,
        techniques.PruneChannels,
        techniques.ReconstructBlocks,
        techniques.ReestimateBatchNorms,
        techniques.SequentialMse,
        techniques.SmoothQuant,
        techniques.SparsifyWeights,
        techniques.SpatialSvd,
        techniques.Tucker2,
        techniques.WeightSvd,
    ]


@hookimpl
def isobit_recipes() -> Sequence[Path]:
    """The recipe files in ``isobit/recipes``."""
    folder = Path(str(files("isobit") / "recipes"))
    return sorted(folder.glob("*.toml"))


@hookimpl
def isobit_formats() -> Sequence[EncodingsFormat]:
    """isobit's own JSON, and AIMET's files."""
    from isobit.formats.aimet_v0_6_1 import AimetV061
    from isobit.formats.aimet_v1 import AimetV1
    from isobit.formats.aimet_v2 import AimetV2
    from isobit.formats.isobit_json import IsobitJson

    return [IsobitJson(), AimetV061(), AimetV1(), AimetV2()]
