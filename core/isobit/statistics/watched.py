"""Watched: a tensor that a running model reduces for an observer, in the form that the runtime needs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from isobit.statistics.observer import Observer, Wants

Location = TypeVar("Location")


@dataclass(frozen=True)
class Watched(Generic[Location]):
    """Where a tensor occurs in a run, the axis of its channels, and how much of it the runtime hands out.

    `place` is the backend's: a value's name, a site and a stage. Equal watched tensors need equal reductions, so that
    what was compiled for one pass serves the next; `limit` is that of a sample, about so many elements each.
    """

    place: Location
    channel_axis: int | None
    wants: Wants
    limit: int | None = None

    @classmethod
    def of(cls, observer: Observer, place: Location, channel_axis: int | None) -> Watched[Location]:
        """What an observer needs of the tensor at `place`."""
        wants = "tensor" if observer.wants == "moments" and not channel_axis else observer.wants
        return cls(place, channel_axis, wants, observer.limit if observer.wants == "sample" else None)

    def whole(self) -> Watched[Location]:
        """The same tensor, all of it: for element types that the runtime does not reduce."""
        return replace(self, wants="tensor", limit=None)
