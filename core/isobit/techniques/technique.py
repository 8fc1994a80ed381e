"""The contract of a technique."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from isobit.encoding import Encoding
from isobit.normal import Normal
from isobit.sites import Site

if TYPE_CHECKING:
    from isobit.backend import BackendModel
    from isobit.data import Dataset
    from isobit.plan import Plan


@dataclass(frozen=True)
class TechniqueReport:
    """What a technique changed, what it left alone and why, and the encodings that its weights were made for.

    `notes` are what a user should know of the result, such as data that is too little for it.
    `encodings` are frozen: calibration keeps them, because weights that were rounded to a grid need that very grid.
    `outputs` is what is known of the distribution of tensors, from batch norms that are gone now.
    """

    technique: str
    changed: tuple[str, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)
    encodings: Mapping[Site, Encoding] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    outputs: Mapping[str, Normal] = field(default_factory=dict, repr=False)


class Technique(Protocol):
    """Improves a model before it is calibrated."""

    def apply(self, model: BackendModel, data: Dataset | None, plan: Plan | None) -> TechniqueReport:
        """Edit `model` through the contract alone. A technique whose needs are not met says so and changes nothing.

        `plan` says what will be quantized and how. `model` has no quantizers switched on; one that needs them sets
        them on a copy.
        """
        ...
