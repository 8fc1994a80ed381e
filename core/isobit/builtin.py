"""isobit's own targets, schemes, techniques and formats, registered through the same hooks as a stranger's."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from isobit.plugins import hookimpl


@hookimpl
def isobit_targets() -> Sequence[Path]:
    """The target files in ``isobit/targets``."""
    folder = Path(str(files("isobit") / "targets"))
    return sorted(folder.glob("*.toml"))


@hookimpl
def isobit_calibrators() -> Sequence[type[Any]]:
    """Min-max and percentile."""
    from isobit.calibration import MinMaxRange, Percentile

    return [MinMaxRange, Percentile]


@hookimpl
def isobit_techniques() -> Sequence[type[Any]]:
    """Batch norm folding and re-estimation, equalization, bias correction, scaling of inputs, rounding of weights."""
    from isobit import techniques

    return [
        techniques.AdaRound,
        techniques.Awq,
        techniques.CorrectBias,
        techniques.EqualizeCrossLayers,
        techniques.FoldBatchNorms,
        techniques.GPTQ,
        techniques.ReestimateBatchNorms,
        techniques.SequentialMse,
        techniques.SmoothQuant,
    ]


@hookimpl
def isobit_recipes() -> Sequence[Path]:
    """The recipe files in ``isobit/recipes``."""
    folder = Path(str(files("isobit") / "recipes"))
    return sorted(folder.glob("*.toml"))


@hookimpl
def isobit_formats() -> Sequence[Any]:
    """isobit's own JSON."""
    from isobit.formats.isobit_json import IsobitJson

    return [IsobitJson()]
