"""Candidates: what a method of compression could do to a layer or to a group of coupled layers, without doing it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from isobit.budget.cost import Cost


@dataclass(frozen=True, eq=False)
class Choice:
    """One way to make a candidate smaller.

    `settings` are what the method needs to do just this again, as TOML takes them: ``{"rank": 12}``, ``{"ranks": [8,
    16]}``, ``{"channels": [0, 2, 3]}``. `size` is how much is kept in the candidate's own count (a rank, a number of
    channels). `cost` is that of all layers of the candidate together, all others as they are now. `error` is the power
    of the error of the output that data shows, as a share of the output's power about its mean: 0 is exact, 1 loses it.
    """

    size: int
    settings: Mapping[str, Any]
    cost: Cost
    error: float
    words: str


@dataclass(frozen=True, eq=False)
class Candidate:
    """A layer, or layers that can only change together, with all that a method offers for it.

    `name` is the first layer's; it is what users write to give it a ratio or to leave it out. `layers` are all whose
    cost or weights change, `full` what they cost now. `choices` lose cost and gain error from first to last; the
    candidate as it is, is none of them. Without choices `why` says why. `from_data` tells whether errors are of outputs
    on data, or of weights alone.
    """

    name: str
    method: str
    layers: tuple[str, ...]
    full: Cost
    choices: tuple[Choice, ...] = ()
    why: str = ""
    from_data: bool = True
    notes: tuple[str, ...] = field(default=())
