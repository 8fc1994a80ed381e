"""The entry point."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isobit.plugins import hookimpl

#: The contract of isobit that this plug-in was written for.
ISOBIT_CONTRACT = 1


@hookimpl
def isobit_targets() -> Sequence[Path]:
    """`npu.toml` is the target ``npu``."""
    return [Path(__file__).with_name("npu.toml")]


@hookimpl
def isobit_calibrators() -> Sequence[type[Any]]:
    """``power-of-two``."""
    from isobit_npu.power_of_two import PowerOfTwo

    return [PowerOfTwo]


@hookimpl
def isobit_techniques() -> Sequence[type[Any]]:
    """``ClipWeights``."""
    from isobit_npu.clip_weights import ClipWeights

    return [ClipWeights]


@hookimpl
def isobit_formats() -> Sequence[Any]:
    """``npu-csv``."""
    from isobit_npu.csv_format import NpuCsv

    return [NpuCsv()]
