"""Changes of a model's graph and weights, planned once in the core for every backend."""

from __future__ import annotations

from isobit.edits.compensation import Compensation
from isobit.edits.draft import Draft, plan_edits
from isobit.edits.edit import (
    AddBias,
    Edit,
    EditPlan,
    Insert,
    Inserted,
    NewNode,
    ReadWeight,
    Replace,
    Replaced,
    Resized,
    SetWeights,
    Slice,
    SliceTogether,
    TrainedWeights,
    Unshare,
)

__all__ = [
    "AddBias",
    "Compensation",
    "Draft",
    "Edit",
    "EditPlan",
    "Insert",
    "Inserted",
    "NewNode",
    "ReadWeight",
    "Replace",
    "Replaced",
    "Resized",
    "SetWeights",
    "Slice",
    "SliceTogether",
    "TrainedWeights",
    "Unshare",
    "plan_edits",
]
