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
from isobit.testing.parity.results import PlacementFacts, Result
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
        promises = ["graph"] if self.graph else []
        promises += [f"plan for {target}" for target, count in self.plans.items() if count]
        promises += ["weight encodings"] if self.weights.near or self.weights.far else []
        promises += ["bias encodings"] if self.biases.far else []
        promises += [f"{scheme} encodings" for scheme, counts in self.activations.items() if counts.far]
        return promises + [f"output {name!r}" for name, agreement in self.outputs.items() if not agreement.kept]

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "broken": self.broken}


def compare(network: str, stage: str, framework: str, reference: Result, other: Result) -> Comparison:
    """Everything that two frameworks found of a network."""
    weights = reference.weights.__getitem__, other.weights.__getitem__
    comparison = Comparison(network, stage, framework, differences(reference.graph, other.graph, *weights))
    comparison.differences += [f"graph: {text}" for text in comparison.graph]
    for target, plan in reference.plans.items():
        _compare_plans(comparison, target, renamed(reference, other, plan), other.plans[target])
    kinds = {site: facts[1] for site, facts in other.plans["default"].items()}
    for scheme, encodings in reference.encodings.items():
        expected = renamed(reference, other, encodings)
        counts = {kind: Counts() for kind in ("activation", "weight", "constant", "bias")}
        for site, encoding in other.encodings[scheme].items():
            verdict = _verdict(scheme, expected.get(site), encoding)
            if verdict != "equal":
                comparison.differences.append(f"{scheme}: {site}: {expected.get(site)} against {encoding} ({verdict})")
            kind = counts[kinds.get(site, "activation")]
            setattr(kind, verdict, getattr(kind, verdict) + 1)
        comparison.activations[scheme] = counts["activation"]
        comparison.biases.add(counts["bias"])
        if scheme == SHARED:  # the others do not look at weights
            comparison.weights.add(counts["weight"])
            comparison.weights.add(counts["constant"])
    for name, signal in reference.floats.items():
        comparison.outputs[name] = agreement(signal, reference.outputs[name], other.outputs[name])
    return comparison


def _compare_plans(
    comparison: Comparison,
    target: str,
    reference_plan: Mapping[Site, PlacementFacts],
    plan: Mapping[Site, PlacementFacts],
) -> None:
    unequal = [site for site in {**reference_plan, **plan} if reference_plan.get(site) != plan.get(site)]
    comparison.plans[target] = len(unequal)
    comparison.differences += [
        f"plan for {target}: {s}: {reference_plan.get(s)} against {plan.get(s)}" for s in unequal
    ]


def _verdict(scheme: str, reference: Encoding | None, encoding: Encoding) -> str:
    if (
        reference is None
        or reference.spec != encoding.spec
        or reference.axis != encoding.axis
        or reference.scale.shape != encoding.scale.shape
    ):
        return "far"
    if reference == encoding:
        return "equal"
    near = _within_a_step(reference, encoding) or (
        scheme in _SEARCHED and _next_candidate(reference, encoding, _SEARCHED[scheme])
    )
    return "near" if near else "far"


def _within_a_step(reference: Encoding, encoding: Encoding) -> bool:
    """Scales at most one step of the 12-bit grid apart, and zero points one."""
    x, y = reference.scale.astype(np.float64), encoding.scale.astype(np.float64)
    step = np.exp2(np.floor(np.log2(np.maximum(x, y))) - (_SCALE_BITS - 1))
    zeros = np.abs(reference.zero_point.astype(np.int64) - encoding.zero_point)
    return bool(np.all(np.abs(x - y) <= step * 1.0001) and np.all(zeros <= 1))


def _next_candidate(reference: Encoding, encoding: Encoding, steps: int) -> bool:
    """Both ends of the range at most one candidate apart, give or take what rounding to the grid adds."""
    grid = float(max(reference.scale.max(), encoding.scale.max()))
    for x, y in ((reference.minimum, encoding.minimum), (reference.maximum, encoding.maximum)):
        largest = float(max(np.abs(x).max(), np.abs(y).max()))
        candidate = 2.0 ** np.floor(np.log2(largest)) / steps if largest > 0 else 0.0
        if float(np.abs(x.astype(np.float64) - y).max()) > candidate + grid:
            return False
    return True


def agreement(signal: NDArray[Any], simulated: NDArray[Any], other_output: NDArray[Any]) -> Agreement:
    """Of two simulators' outputs for the same data; `signal` is the float model's."""
    choices = [array.reshape(-1, array.shape[-1]).argmax(-1) for array in (simulated, other_output)]
    return Agreement(
        decibels(simulated, other_output), decibels(signal, simulated), float(np.mean(choices[0] == choices[1]))
    )


def decibels(signal: NDArray[Any], other: NDArray[Any]) -> float:
    """Signal to noise of `other` as an approximation of `signal`; 200 where nothing differs."""
    exact = signal.astype(np.float64)
    noise, power = float(np.square(exact - other).sum()), float(np.square(exact).sum())
    if noise == 0:
        return _EQUAL_DB
    return min(_EQUAL_DB, 10 * float(np.log10(max(power, 1e-300) / noise)))


def shares(comparisons: list[Comparison]) -> dict[str, Counts]:
    """Counts of all activations, by scheme."""
    by_scheme: dict[str, Counts] = {}
    for comparison in comparisons:
        for scheme, counts in comparison.activations.items():
            by_scheme.setdefault(scheme, Counts()).add(counts)
    return by_scheme


def broken_promises(comparisons: list[Comparison]) -> list[str]:
    """Every promise that does not hold, in words."""
    promises = [f"{c.network} ({c.stage}) in {c.framework}: {promise}" for c in comparisons for promise in c.broken]
    for scheme, counts in shares(comparisons).items():
        searched = scheme in _SEARCHED
        if not searched and counts.total and counts.equal < EQUAL_SHARE * counts.total:
            promises.append(
                f"{scheme}: {counts.equal} of {counts.total} activation encodings are equal to the last bit"
            )
    return promises


def differing(comparisons: list[Comparison]) -> Counter[str]:
    """How many differences of each sort there are."""
    return Counter(text.partition(":")[0] for c in comparisons for text in c.differences)
