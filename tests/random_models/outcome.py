"""What came of one random model, and the sums over many."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Outcome:
    """`problems` are (kind, text); none where all holds.

    `bits` says how the file computed as it is written stands to the simulator: ``"equal"``, ``"ties"`` or
    ``"different"``; the decibels are those of the default session, of the output that is farthest.
    """

    seed: int
    problems: list[tuple[str, str]] = field(default_factory=list)
    bits: str = ""
    default_decibels: float = math.nan
    is_quantized: bool = False

    def add(self, kind: str, text: object) -> None:
        """One thing that does not hold."""
        self.problems.append((kind, str(text)))


@dataclass
class Figures:
    """Counts over many outcomes."""

    cases: int = 0
    quantized: int = 0
    bits: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    decibels: list[float] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)

    def count(self, outcome: Outcome, kinds: set[str]) -> None:
        """One more; `kinds` are its operations or layers."""
        self.cases += 1
        self.quantized += outcome.is_quantized
        self.bits[outcome.bits] += 1
        self.problems.update({kind for kind, _ in outcome.problems})
        self.kinds |= kinds
        if not math.isnan(outcome.default_decibels):
            self.decibels.append(outcome.default_decibels)

    def default_sessions(self, least: float) -> float:
        """Of the default sessions, those at least so many decibels from the simulator."""
        return sum(value >= least for value in self.decibels) / max(1, len(self.decibels))
