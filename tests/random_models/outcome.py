"""What came of one random model, and the sums over many."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass
class Outcome:
    """`problems` are (kind, text); none where all holds. `kinds` are the operations or layers of the model.

    `bits` says how the file computed as it is written stands to the simulator: ``"equal"``, ``"ties"`` or
    ``"different"``; the decibels are those of the default session, of the output that is farthest.
    """

    seed: int
    problems: list[tuple[str, str]] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
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

    def count(self, outcome: Outcome) -> None:
        """One more."""
        self.cases += 1
        self.quantized += outcome.is_quantized
        self.bits[outcome.bits] += 1
        self.problems.update({kind for kind, _ in outcome.problems})
        self.kinds |= set(outcome.kinds)
        if not math.isnan(outcome.default_decibels):
            self.decibels.append(outcome.default_decibels)

    def default_sessions(self, least: float) -> float:
        """Of the default sessions, those at least so many decibels from the simulator."""
        return sum(value >= least for value in self.decibels) / max(1, len(self.decibels))


class Journal:
    """A file with what came of each model, so that a long run goes on where it was stopped.

    Models with problems are run again; the last line of a seed counts.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        lines = path.read_text("utf-8").splitlines() if path is not None and path.exists() else []
        entries = [json.loads(line) for line in lines]
        self._known = {(sort, fields["seed"]): Outcome(**fields) for sort, fields in entries}

    def known(self, sort: str, seed: int) -> Outcome | None:
        """What came of a seed, None where it is to be run."""
        outcome = self._known.get((sort, seed))
        return outcome if outcome is not None and not outcome.problems else None

    def add(self, sort: str, outcome: Outcome) -> None:
        """Keep one more."""
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([sort, asdict(outcome)]) + "\n")
