"""The contract between the core and a framework, and what a backend may offer beyond it."""

from __future__ import annotations

from isobit.backend.checked_model import CheckedModel
from isobit.backend.checks import check_quantizers
from isobit.backend.contract import Backend, BackendModel, Differentiable, NameMap, OnnxName
from isobit.backend.devices import device_of
from isobit.backend.kept_parts import KeptParts
from isobit.backend.optional import (
    CountsBatches,
    Deployed,
    DeploysFiles,
    HasInnerValues,
    HoldsAdapters,
    HoldsSessions,
    LoadsFloatWeights,
    NativeExporter,
    OpenedByExample,
    QdqWriter,
    ReportsDevice,
    RunsGiven,
    RunsParts,
    RunsWritten,
    SaysGivenTypes,
    SaysPrecision,
    ShowsRounding,
    Teaches,
    TrainsGrids,
    WrittenRun,
)
from isobit.data import Batch

__all__ = [
    "Backend",
    "BackendModel",
    "Batch",
    "CheckedModel",
    "CountsBatches",
    "Deployed",
    "DeploysFiles",
    "Differentiable",
    "HasInnerValues",
    "HoldsAdapters",
    "HoldsSessions",
    "KeptParts",
    "LoadsFloatWeights",
    "NameMap",
    "NativeExporter",
    "OnnxName",
    "OpenedByExample",
    "QdqWriter",
    "ReportsDevice",
    "RunsGiven",
    "RunsParts",
    "RunsWritten",
    "SaysGivenTypes",
    "SaysPrecision",
    "ShowsRounding",
    "Teaches",
    "TrainsGrids",
    "WrittenRun",
    "check_quantizers",
    "device_of",
]
