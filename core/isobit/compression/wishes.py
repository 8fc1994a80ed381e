"""Wishes: what a user asks of a compression, checked before anything runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from numbers import Integral, Real

from isobit.budget import SELECTIONS, Candidate, Cost, Pick
from isobit.errors import FormatError, did_you_mean
from isobit.graph.graph import Graph


@dataclass(frozen=True)
class Wishes:
    """How much is kept, in which unit, and of what.

    `ratios` gives layers, by name or pattern, a share of their own cost; `exclude` holds patterns of layers or op types
    that stay whole. `multiple` is what sizes are multiples of, `trials` how many choices of sizes are carried out and
    judged at most. `met` are layers whose ratio an earlier method has met, and what it made of them.
    """

    keep: float = 0.5
    cost: str = "macs"
    select: str = "integer-program"
    multiple: int = 1
    ratios: Mapping[str, float] = field(default_factory=dict)
    exclude: Sequence[str] = ()
    trials: int = 3
    met: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        _check_share("keep", self.keep)
        object.__setattr__(self, "keep", float(self.keep))
        Cost().of(self.cost)
        if self.select not in SELECTIONS:
            known = ", ".join(SELECTIONS)
            raise FormatError(
                f"select {self.select!r} is unknown{did_you_mean(self.select, SELECTIONS)}; known: {known}"
            )
        for name in ("multiple", "trials"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
                raise FormatError(f"{name} must be a whole number of at least 1, not {value!r}")
            object.__setattr__(self, name, int(value))
        if not isinstance(self.ratios, Mapping):
            raise FormatError(f"ratios must be shares by layer, as {{'conv1': 0.5}}, not {self.ratios!r}")
        for pattern, ratio in self.ratios.items():
            _check_share(f"ratios[{pattern!r}]", ratio)
        patterns = (self.exclude,) if isinstance(self.exclude, str) else self.exclude
        if not isinstance(patterns, Iterable) or not all(isinstance(pattern, str) for pattern in patterns):
            raise FormatError(f"exclude must be names or patterns of layers, not {self.exclude!r}")
        object.__setattr__(self, "exclude", tuple(patterns))
        object.__setattr__(self, "ratios", dict(self.ratios))

    def check(self, graph: Graph) -> None:
        """Raise FormatError for a pattern that reaches no layer with weights."""
        layers = [node for node in graph.nodes if any(name in graph.weights for name in node.inputs)]
        names, ops = [node.name for node in layers], {node.op for node in layers}
        for what, patterns in (("ratios", self.ratios), ("exclude", self.exclude)):
            for pattern in patterns:
                if not any(_matches(name, pattern) for name in names) and pattern not in ops:
                    raise FormatError(
                        f"{what}: {pattern!r} matches no layer with weights"
                        f"{did_you_mean(pattern, names)}; there are {', '.join(names[:8]) or 'none'}"
                    )

    def after(self, graph: Graph, fixed: Iterable[str]) -> Wishes:
        """Those of the next method, on the graph that this one has made: what it made of layers with a ratio stays."""
        parts = {node.name for node in graph.nodes for name in fixed if node.name.startswith(f"{name}.")}
        return replace(self, met=self.met | set(fixed) | parts)

    def free(self, graph: Graph, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Candidates whose size is to be chosen; the excluded ones are without choices, the others left out."""
        found = []
        for candidate in candidates:
            why = self._left_out(graph, candidate)
            if why:
                found.append(replace(candidate, choices=(), why=why))
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
            if ratio is None or self._left_out(graph, candidate):
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

    def notes(
        self, graph: Graph, candidates: Sequence[Candidate], picks: Mapping[str, Pick], left: Mapping[str, str]
    ) -> Iterator[tuple[str, str]]:
        """Layers whose ratio is not met, and a note of that with the nearest that can be."""
        for candidate in {candidate.name: candidate for candidate in candidates}.values():
            ratio, name = self._ratio(graph, candidate), candidate.name
            if ratio is None or ratio == 1 or self._left_out(graph, candidate):
                continue
            if name in picks:
                full, least = picks[name].candidate.full.of(self.cost), picks[name].choice.cost.of(self.cost)
                if least > ratio * full > 0:
                    nearest = f"{least / full:.3g} is the nearest"
                    yield name, f"ratios: {name} cannot keep {ratio:.3g} of its {self.cost}, {nearest}"
            elif name in left:
                yield name, f"ratios: {name} stays whole: {left[name]}"

    def unreached(self, offered: Collection[tuple[Graph, Candidate]]) -> Iterator[str]:
        """Notes of the ratios that reach none of these candidates, which are of a graph each."""
        for pattern, ratio in self.ratios.items():
            if ratio < 1 and not any(_reaches(graph, candidate, pattern) for graph, candidate in offered):
                yield f"ratios: {pattern!r} reaches no layer that these methods make smaller"

    def _left_out(self, graph: Graph, candidate: Candidate) -> str:
        """Why a candidate is not looked at, or an empty text."""
        if self.met & {candidate.name, *candidate.layers}:
            return "its ratio is met already"
        pattern = next((p for p in self.exclude if _reaches(graph, candidate, p)), None)
        return "" if pattern is None else f"left out by exclude {pattern!r}"

    def _ratio(self, graph: Graph, candidate: Candidate) -> float | None:
        """The ratio of the last pattern that reaches it."""
        found = [ratio for pattern, ratio in self.ratios.items() if _reaches(graph, candidate, pattern)]
        return found[-1] if found else None


def _reaches(graph: Graph, candidate: Candidate, pattern: str) -> bool:
    # a group of channels may have a name that no node has
    return _matches(candidate.name, pattern) or any(
        _matches(name, pattern) or graph.node(name).op == pattern for name in candidate.layers
    )


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def _check_share(what: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) <= 1:
        raise FormatError(f"{what} must be a share above 0 and at most 1, not {value!r}")
