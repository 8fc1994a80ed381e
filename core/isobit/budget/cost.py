"""Cost: what a layer, or a network, takes of a machine for one sample, in every unit that a budget can be given in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from isobit.errors import FormatError, did_you_mean

#: The units of a budget.
UNITS = ("macs", "parameters", "bytes", "activations", "milliseconds")


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates, parameters, bytes of them as they are stored, elements of all outputs, and time.

    Of one sample in float; `milliseconds` is by a target's table, and 0 where it has none.
    """

    macs: float = 0.0
    parameters: float = 0.0
    bytes: float = 0.0
    activations: float = 0.0
    milliseconds: float = 0.0

    def of(self, unit: str) -> float:
        """The figure in one of `UNITS`. Raises FormatError for another."""
        if unit not in UNITS:
            raise FormatError(f"no cost is called {unit!r}{did_you_mean(unit, UNITS)}; known are {', '.join(UNITS)}")
        return float(getattr(self, unit))

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.macs + other.macs,
            self.parameters + other.parameters,
            self.bytes + other.bytes,
            self.activations + other.activations,
            self.milliseconds + other.milliseconds,
        )

    def __sub__(self, other: Cost) -> Cost:
        return self + other.times(-1.0)

    def times(self, factor: float) -> Cost:
        """So many times as much."""
        return Cost(
            self.macs * factor,
            self.parameters * factor,
            self.bytes * factor,
            self.activations * factor,
            self.milliseconds * factor,
        )

    @classmethod
    def sum(cls, costs: Iterable[Cost]) -> Cost:
        """What all of them cost together."""
        total = cls()
        for cost in costs:
            total += cost
        return total
