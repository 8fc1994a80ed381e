"""What the tensor of a node is given to."""

from __future__ import annotations

from dataclasses import dataclass

from isobit.statistics import Observer


@dataclass(frozen=True, eq=False)
class FedObserver:
    """An observer, and the channel axis of the tensor that it is given."""

    observer: Observer
    channel_axis: int | None
