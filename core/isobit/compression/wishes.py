"""Wishes: what a user asks of a compression, checked before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from isobit.budget import SELECTIONS, Candidate, Cost, Pick
from isobit.errors import FormatError, did_you_mean
from isobit.graph.graph import Graph


@dataclass(frozen=True)
class Wishes:
    """How much is kept, in which unit, and of what.

    `ratios` gives layers, by name or pattern, a share of their own cost; `exclude` holds patterns of layers or op types
    that stay whole. `multiple` is what sizes are multiples of, `trials` how many choices of sizes are carried out and
    judged at most.
    """

    keep: float = 0.5
    cost: str = "macs"
    select: str = "integer-program"
    multiple: int = 1
    ratios: Mapping[str, float] = field(default_factory=dict)
    exclude: Sequence[str] = ()
    trials: int = 3

    def __post_init__(self) -> None:
        _check_share("keep", self.keep)
        Cost().of(self.cost)
        if self.select not in SELECTIONS:
            known = ", ".join(SELECTIONS)
            raise FormatError(
                f"select {self.select!r} is unknown{did_you_mean(self.select, SELECTIONS)}; known: {known}"
            )
        for name, least in (("multiple", 1), ("trials", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise FormatError(f"{name} must be a whole number of at least {least}, not {value!r}")
        for pattern, ratio in self.ratios.items():
            _check_share(f"ratios[{pattern!r}]", ratio)
        patterns = (self.exclude,) if isinstance(self.exclude, str) else tuple(self.exclude)
        object.__setattr__(self, "exclude", patterns)

    def check(self, graph: Graph, candidates: Sequence[Candidate]) -> None:
        """Raise FormatError for a pattern that reaches no layer."""
        names = list(dict.fromkeys(name for each in candidates for name in (each.name, *each.layers)))
        ops = {graph.node(name).op for name in names}
        for what, patterns in (("ratios", self.ratios), ("exclude", self.exclude)):
            for pattern in patterns:
                if not any(_matches(name, pattern) for name in names) and pattern not in ops:
                    raise FormatError(
                        f"{what}: {pattern!r} matches no layer that could be made smaller"
                        f"{did_you_mean(pattern, names)}; there are {', '.join(names[:8]) or 'none'}"
                    )

    def free(self, graph: Graph, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Candidates whose size is to be chosen; the excluded ones are without choices, the others left out."""
        found = []
        for candidate in candidates:
            pattern = self._excluding(graph, candidate)
            if pattern is not None:
                found.append(replace(candidate, choices=(), why=f"left out by exclude {pattern!r}"))
            elif self._ratio(graph, candidate) is None:
                found.append(candidate)
        return found

    def fixed(self, graph: Graph, candidates: Iterable[Candidate]) -> tuple[dict[str, Pick], dict[str, str]]:
        """The layers with a ratio of their own, of least error within it, else the nearest; and why some stay whole."""
        offers: dict[str, list[Pick]] = {}
        ratios: dict[str, float] = {}
        left: dict[str, str] = {}
        for candidate in candidates:
            ratio = self._ratio(graph, candidate)
            if ratio is None or self._excluding(graph, candidate) is not None:
                continue
            ratios[candidate.name] = ratio
            if ratio == 1:
                left[candidate.name] = "its ratio is 1"
            elif not candidate.choices:
                left[candidate.name] = candidate.why
            else:
                offers.setdefault(candidate.name, []).extend(Pick(candidate, choice) for choice in candidate.choices)
        picks = {}
        for name, picked in offers.items():
            left.pop(name, None)
            within = [
                pick
                for pick in picked
                if pick.choice.cost.of(self.cost) <= ratios[name] * pick.candidate.full.of(self.cost)
            ]
            if within:
                picks[name] = min(within, key=lambda pick: (pick.choice.error, pick.choice.cost.of(self.cost)))
            else:
                picks[name] = min(picked, key=lambda pick: pick.choice.cost.of(self.cost))
        return picks, left

    def _excluding(self, graph: Graph, candidate: Candidate) -> str | None:
        return next((p for p in self.exclude if _reaches(graph, candidate, p)), None)

    def _ratio(self, graph: Graph, candidate: Candidate) -> float | None:
        """The ratio of the last pattern that reaches it."""
        found = [ratio for pattern, ratio in self.ratios.items() if _reaches(graph, candidate, pattern)]
        return found[-1] if found else None


def _reaches(graph: Graph, candidate: Candidate, pattern: str) -> bool:
    names = (candidate.name, *candidate.layers)
    return any(_matches(name, pattern) or graph.node(name).op == pattern for name in names)


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def _check_share(what: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise FormatError(f"{what} must be a share above 0 and at most 1, not {value!r}")
