"""What a node is watched for."""

from __future__ import annotations

from dataclasses import dataclass

from isobit.observer import Request


@dataclass(frozen=True)
class Watched:
    """One request, and the channel axis of its tensor."""

    request: Request
    channel_axis: int | None
