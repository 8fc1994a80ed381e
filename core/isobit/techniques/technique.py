"""The contract of a technique."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from isobit.backend import BackendModel
    from isobit.data import Dataset


@dataclass(frozen=True)
class TechniqueReport:
    """What a technique changed, and what it left alone and why."""

    technique: str
    changed: tuple[str, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)


class Technique(Protocol):
    """Improves a model before it is calibrated."""

    def apply(self, model: BackendModel, data: Dataset | None) -> TechniqueReport:
        """Edit `model` through the contract alone. A technique whose needs are not met says so and changes nothing."""
        ...
