"""Counting what differs between two frameworks: graphs, plans, encodings, outputs.

Encodings of activations come from values that differ in their last bits, so a few may differ by one step of the 12-bit
grid of scales, or by one candidate of a search; weights, graphs and plans may not differ at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.encodings.encoding import Encoding
from isobit.graph.isomorphism import differences
from isobit.graph.sites import Site
from isobit.testing.parity.results import Result, Said
from isobit.testing.parity.worker import SHARED, renamed

#: Smallest share of activations whose encodings must be equal to the last bit.
EQUAL_SHARE = 0.98
#: The difference of two simulators lies this far below the noise of quantization, or their choices agree this often.
MARGIN_DB, TOP1_SHARE = 20.0, 0.995

#: Significant bits of an activation's scale, and candidates to a power of two of the schemes that search.
_SCALE_BITS = 12
_SEARCHED: Mapping[str, int] = {"entropy": 32, "mse": 64, "sqnr": 64}

_EQUAL_DB = 200.0


@dataclass
class Counts:
    """Encodings of one kind: equal to the last bit, one step apart, and further apart."""

    equal: int = 0
    near: int = 0
    far: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.equal + self.near + self.far

    def add(self, other: Counts) -> None:
        """Count those of another comparison too."""
        self.equal, self.near, self.far = self.equal + other.equal, self.near + other.near, self.far + other.far


@dataclass(frozen=True)
class Agreement:
    """Simulated outputs with the same encodings: their difference and the noise of quantization, and equal choices."""

    difference_db: float
    noise_db: float
    top1: float

    @property
    def margin_db(self) -> float:
        """How far the difference lies below the noise."""
        return self.difference_db - self.noise_db

    @property
    def kept(self) -> bool:
        """Whether the promise holds."""
        return self.margin_db >= MARGIN_DB or self.top1 >= TOP1_SHARE


@dataclass
class Comparison:
    """One network at one stage in two frameworks. `differences` say where; `broken` are promises that do not hold."""

    network: str
    stage: str
    framework: str
    graph: list[str] = field(default_factory=list)
    plans: dict[str, int] = field(default_factory=dict)
    weights: Counts = field(default_factory=Counts)
    biases: Counts = field(default_factory=Counts)
    activations: dict[str, Counts] = field(default_factory=dict)
    outputs: dict[str, Agreement] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)

    @property
    def broken(self) -> list[str]:
        """The promises that one network can break; the share of equal encodings is one of all together."""
        found = ["graph"] if self.graph else []
        found += [f"plan for {target}" for target, count in self.plans.items() if count]
        found += ["weight encodings"] if self.weights.near or self.weights.far else []
        found += ["bias encodings"] if self.biases.far else []
        found += [f"{scheme} encodings" for scheme, counts in self.activations.items() if counts.far]
        return found + [f"output {name!r}" for name, agreement in self.outputs.items() if not agreement.kept]

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "broken": self.broken}


def compare(network: str, stage: str, framework: str, reference: Result, other: Result) -> Comparison:
    """Everything that two frameworks found of a network."""
    read = reference.weights.__getitem__, other.weights.__getitem__
    found = Comparison(network, stage, framework, differences(reference.graph, other.graph, *read))
    found.differences += [f"graph: {text}" for text in found.graph]
    for target, plan in reference.plans.items():
        _compare_plans(found, target, renamed(reference, other, plan), other.plans[target])
    kinds = {site: said[1] for site, said in other.plans["default"].items()}
    for scheme, encodings in reference.encodings.items():
        theirs = renamed(reference, other, encodings)
        counts = {kind: Counts() for kind in ("activation", "weight", "constant", "bias")}
        for site, encoding in other.encodings[scheme].items():
            verdict = _verdict(scheme, theirs.get(site), encoding)
            if verdict != "equal":
                found.differences.append(f"{scheme}: {site}: {theirs.get(site)} against {encoding} ({verdict})")
            kind = counts[kinds.get(site, "activation")]
            setattr(kind, verdict, getattr(kind, verdict) + 1)
        found.activations[scheme] = counts["activation"]
        found.biases.add(counts["bias"])
        if scheme == SHARED:  # the others do not look at weights
            found.weights.add(counts["weight"])
            found.weights.add(counts["constant"])
    for name, signal in reference.floats.items():
        found.outputs[name] = agreement(signal, reference.outputs[name], other.outputs[name])
    return found


def _compare_plans(found: Comparison, target: str, ours: Mapping[Site, Said], theirs: Mapping[Site, Said]) -> None:
    odd = [site for site in {**ours, **theirs} if ours.get(site) != theirs.get(site)]
    found.plans[target] = len(odd)
    found.differences += [f"plan for {target}: {s}: {ours.get(s)} against {theirs.get(s)}" for s in odd]


def _verdict(scheme: str, a: Encoding | None, b: Encoding) -> str:
    if a is None or a.spec != b.spec or a.axis != b.axis or a.scale.shape != b.scale.shape:
        return "far"
    if a == b:
        return "equal"
    near = _within_a_step(a, b) or (scheme in _SEARCHED and _next_candidate(a, b, _SEARCHED[scheme]))
    return "near" if near else "far"


def _within_a_step(a: Encoding, b: Encoding) -> bool:
    """Scales at most one step of the 12-bit grid apart, and zero points one."""
    x, y = a.scale.astype(np.float64), b.scale.astype(np.float64)
    step = np.exp2(np.floor(np.log2(np.maximum(x, y))) - (_SCALE_BITS - 1))
    zeros = np.abs(a.zero_point.astype(np.int64) - b.zero_point)
    return bool(np.all(np.abs(x - y) <= step * 1.0001) and np.all(zeros <= 1))


def _next_candidate(a: Encoding, b: Encoding, steps: int) -> bool:
    """Both ends of the range at most one candidate apart, give or take what rounding to the grid adds."""
    grid = float(max(a.scale.max(), b.scale.max()))
    for x, y in ((a.minimum, b.minimum), (a.maximum, b.maximum)):
        largest = float(max(np.abs(x).max(), np.abs(y).max()))
        candidate = 2.0 ** np.floor(np.log2(largest)) / steps if largest > 0 else 0.0
        if float(np.abs(x.astype(np.float64) - y).max()) > candidate + grid:
            return False
    return True


def agreement(signal: NDArray[Any], simulated: NDArray[Any], other: NDArray[Any]) -> Agreement:
    """Of two simulators' outputs for the same data; `signal` is the float model's."""
    best = [array.reshape(-1, array.shape[-1]).argmax(-1) for array in (simulated, other)]
    return Agreement(decibels(simulated, other), decibels(signal, simulated), float(np.mean(best[0] == best[1])))


def decibels(signal: NDArray[Any], other: NDArray[Any]) -> float:
    """Signal to noise of `other` as an approximation of `signal`; 200 where nothing differs."""
    wide = signal.astype(np.float64)
    noise, power = float(np.square(wide - other).sum()), float(np.square(wide).sum())
    if noise == 0:
        return _EQUAL_DB
    return min(_EQUAL_DB, 10 * float(np.log10(max(power, 1e-300) / noise)))


def shares(comparisons: list[Comparison]) -> dict[str, Counts]:
    """Counts of all activations, by scheme."""
    found: dict[str, Counts] = {}
    for comparison in comparisons:
        for scheme, counts in comparison.activations.items():
            found.setdefault(scheme, Counts()).add(counts)
    return found


def broken_promises(comparisons: list[Comparison]) -> list[str]:
    """Every promise that does not hold, in words."""
    found = [f"{c.network} ({c.stage}) in {c.framework}: {promise}" for c in comparisons for promise in c.broken]
    for scheme, counts in shares(comparisons).items():
        searched = scheme in _SEARCHED
        if not searched and counts.total and counts.equal < EQUAL_SHARE * counts.total:
            found.append(f"{scheme}: {counts.equal} of {counts.total} activation encodings are equal to the last bit")
    return found


def differing(comparisons: list[Comparison]) -> Counter[str]:
    """How many differences of each sort there are."""
    return Counter(text.partition(":")[0] for c in comparisons for text in c.differences)
