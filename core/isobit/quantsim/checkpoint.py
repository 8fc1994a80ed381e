"""A simulator between two techniques, to come back to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from isobit.backend.checked_model import CheckedModel
from isobit.encodings.encoding import Encoding
from isobit.graph.sites import Site
from isobit.statistics.statistics import Statistics
from isobit.techniques.layers.normal import NormalPerChannel
from isobit.techniques.technique import TechniqueReport


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Everything that a technique changes; `model` is a copy with its quantizers and the log of its edits."""

    model: CheckedModel
    frozen: Mapping[Site, Encoding]
    reports: Sequence[TechniqueReport]
    statistics: Statistics
    calibration: str | None
    batch_norms: Mapping[str, NormalPerChannel]
