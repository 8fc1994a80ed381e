"""What a technique works on, and the one door through which it observes the model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from isobit.backend.checked_model import CheckedModel
from isobit.calibration.needed_statistics import blank_statistics
from isobit.calibration.scheme import Calibrator
from isobit.calibration.schemes.minmax import MinMaxRange
from isobit.calibration.simulated_copy import quantized_copy, simulated_encodings, weights_quantized_copy
from isobit.data import Dataset
from isobit.encodings.encoding import Encoding
from isobit.errors import DataError
from isobit.graph.graph import Graph
from isobit.graph.sites import Site
from isobit.placement.plan import Plan
from isobit.statistics.observer import Request
from isobit.statistics.sampling import SAMPLE_LIMIT
from isobit.statistics.statistics import Seen, Statistics, observed
from isobit.techniques.layers.normal import NormalPerChannel

T = TypeVar("T")

FLOAT, QUANTIZED, WEIGHTS_QUANTIZED = "float", "quantized", "weights quantized"


@dataclass(frozen=True)
class Requests:
    """What a technique must have observed before it decides.

    `float` is asked of the float model; `quantized` of a copy with all quantizers of the plan, which stand on the
    ranges of the float model; `weights_quantized` of a copy whose weights are quantized and whose activations are
    clipped to their grids but not rounded. `ranges`: those of the float model are needed in any case.
    """

    float: Sequence[Request] = ()
    quantized: Sequence[Request] = ()
    weights_quantized: Sequence[Request] = ()
    ranges: bool = False

    @property
    def needs_ranges(self) -> bool:
        """Whether the ranges of the activations are needed: quantized copies stand on them."""
        return self.ranges or bool(self.quantized) or bool(self.weights_quantized)

    @property
    def are_none(self) -> bool:
        """Whether no data is needed at all."""
        return not self.needs_ranges and not self.float


@dataclass(frozen=True)
class Observations:
    """The reducers for `Requests`, in the same order, and the ranges of the float model's tensors."""

    float: Sequence[Any]
    quantized: Sequence[Any]
    weights_quantized: Sequence[Any]
    ranges: Statistics


class Pass(Protocol):
    """One pass over the data, and the work between passes, with all settings that the user has for them."""

    def __call__(self, model: CheckedModel, seen: Sequence[Seen], what: str) -> None:
        """Feed the reducers with the batches that each has not seen yet."""
        ...

    def each(self, items: Sequence[T], what: str) -> Iterator[T]:
        """The items of long work one by one, shown as passes are."""
        ...


@dataclass(frozen=True)
class PlainPass:
    """The passes of a context that is made by hand: in this process, over all of the data."""

    dataset: Dataset

    def __call__(self, model: CheckedModel, seen: Sequence[Seen], what: str) -> None:
        """Feed the reducers, which have seen nothing yet."""
        model.observe(self.dataset, [item.request for item in seen])
        for item in seen:
            item.complete = True

    def each(self, items: Sequence[T], what: str) -> Iterator[T]:
        """The items."""
        return iter(items)


class TechniqueContext:
    """A float model to improve, the plan for it, and the data, or what was observed of it.

    `model` has no quantizers switched on; edits go through it. `plan` says what will be quantized and how, `replan` how
    an edited graph would be planned; `frozen` holds encodings that are decided already, whatever is observed.
    `calibrator` chooses ranges where a technique compares with a quantized model. `batch_norms` is what is known of the
    distribution of tensors from batch norms that were folded.
    """

    def __init__(
        self,
        model: CheckedModel,
        plan: Plan | None = None,
        dataset: Dataset | None = None,
        *,
        frozen: Mapping[Site, Encoding] | None = None,
        replan: Callable[[Graph], Plan] | None = None,
        calibrator: Calibrator | None = None,
        batch_norms: Mapping[str, NormalPerChannel] | None = None,
        statistics: Statistics | None = None,
        run_pass: Pass | None = None,
        name: str = "the technique",
    ) -> None:
        self.model, self.plan, self.dataset = model, plan or Plan({}), dataset
        self.frozen, self.batch_norms = frozen or {}, batch_norms or {}
        self.replan = replan
        self.calibrator = calibrator or MinMaxRange()
        self.name = name
        self._statistics = Statistics() if statistics is None else statistics
        self._run_pass = run_pass if run_pass is not None or dataset is None else PlainPass(dataset)

    @property
    def graph(self) -> Graph:
        """The neutral graph as it is now."""
        return self.model.graph

    def on(self, copy: CheckedModel) -> TechniqueContext:
        """The same for a copy of the model, which was observed as the model was."""
        return TechniqueContext(
            copy,
            self.plan,
            self.dataset,
            frozen=self.frozen,
            replan=self.replan,
            calibrator=self.calibrator,
            batch_norms=self.batch_norms,
            statistics=self._statistics,
            run_pass=self._run_pass,
            name=self.name,
        )

    # --- observing -------------------------------------------------------------------------------------------------

    def observe(self, requests: Requests, *, keep: bool = True) -> Observations:
        """What the data shows for `requests`: at most one pass of the float model and one of each quantized copy.

        What was observed of this model before, and is there, is not observed again. Without `keep` nothing is there
        afterwards that a later call could use: for what takes much memory. Raises DataError when something is missing
        and there is no data, or not for so many passes.
        """
        store = self._statistics if keep else Statistics()
        float_seen = [store.seen(FLOAT, request) for request in requests.float]
        if requests.needs_ranges:
            self._statistics.set_ranges(blank_statistics(self.plan, SAMPLE_LIMIT))
        ranges = self._statistics.ranges() if requests.needs_ranges else []
        copies = ((QUANTIZED, requests.quantized), (WEIGHTS_QUANTIZED, requests.weights_quantized))
        passes = int(_unfinished([*ranges, *float_seen])) + sum(bool(asked) for _, asked in copies)
        if passes > 1:
            self.require_passes(passes)
        if _unfinished([*ranges, *float_seen]):
            self._pass(self.model, [seen for seen in (*ranges, *float_seen) if not seen.complete])
        reducers = {}
        for kind, asked in copies:
            reducers[kind] = self._observe_copy(kind, asked, store) if asked else []
        return Observations(
            [seen.reducer for seen in float_seen], reducers[QUANTIZED], reducers[WEIGHTS_QUANTIZED], self._statistics
        )

    def observe_ranges(self, *, further_passes: int) -> Statistics:
        """The ranges of the float model: at most one pass, which the data must serve and `further_passes` behind it."""
        self._statistics.set_ranges(blank_statistics(self.plan, SAMPLE_LIMIT))
        ranges = self._statistics.ranges()
        if _unfinished(ranges):
            self.require_passes(1 + further_passes)
            self._pass(self.model, [seen for seen in ranges if not seen.complete])
        return self._statistics

    def can_observe(self, requests: Requests) -> bool:
        """Whether there is data, or everything of the float model that is asked for is there already."""
        seen = [self._statistics.further.get(observed(FLOAT, request)) for request in requests.float]
        return self.dataset is not None or all(item is not None and item.complete for item in seen)

    def observe_copy(self, copy: CheckedModel, requests: Sequence[Request], part: str = "") -> None:
        """One pass of a copy of the model that only the technique knows: its requests' own observers are fed.

        `part` says beside the bar which part of the technique's work the pass is for.
        """
        self._pass(copy, [Seen(request.site, request.observer, request.stage) for request in requests], part)

    def each(self, items: Sequence[T], what: str) -> Iterator[T]:
        """The items one by one, counted beside a bar where passes have one: for long work between passes.

        `what` they are ("layers"). No pass runs between two of them, for it has a bar of its own.
        """
        return iter(items) if self._run_pass is None else self._run_pass.each(items, f"{self.name}, {what}")

    def quantized_copy(self) -> CheckedModel:
        """A copy of the model with all quantizers of the plan. `observe` with `ranges` comes before it."""
        return quantized_copy(self.model, self.encodings())

    def weights_quantized_copy(self) -> CheckedModel:
        """A copy with quantized weights and clipped activations. `observe` with `ranges` comes before it."""
        return weights_quantized_copy(self.model, self.plan, self.encodings(), self._statistics)

    def require_passes(self, count: int) -> None:
        """Raise DataError before anything runs when the data does not serve so many passes."""
        if self.dataset is not None:
            self.dataset.require_passes(count, self.name)

    def encodings(
        self, model: CheckedModel | None = None, frozen: Mapping[Site, Encoding] | None = None
    ) -> dict[Site, Encoding]:
        """The encodings of all that is simulated, by the weights of `model` (a copy; None: the model itself).

        What is `frozen` besides is taken as it is. `observe` with `ranges` comes before it.
        """
        kept = {**self.frozen, **(frozen or {})}
        return simulated_encodings(model or self.model, self.plan, self._statistics, self.calibrator, kept)

    def _observe_copy(self, kind: str, asked: Sequence[Request], store: Statistics) -> list[Any]:
        encodings = self.encodings()
        key = f"{kind} {_digest(encodings)}"
        seen = [store.seen(key, request) for request in asked]
        if _unfinished(seen):
            copy = (
                quantized_copy(self.model, encodings)
                if kind == QUANTIZED
                else weights_quantized_copy(self.model, self.plan, encodings, self._statistics)
            )
            self._pass(copy, seen)
        return [item.reducer for item in seen]

    def _pass(self, model: CheckedModel, seen: Sequence[Seen], part: str = "") -> None:
        if self._run_pass is None:
            raise DataError(
                f"{self.name} needs data, for what it has to observe is not there: pass data= (a list of batches, an "
                "array, a loader), or load statistics that QuantSim.observe made for it"
            )
        self._run_pass(model, seen, f"{self.name}, {part}" if part else self.name)


def _unfinished(seen: Sequence[Seen]) -> bool:
    return any(not item.complete for item in seen)


def _digest(encodings: Mapping[Site, Encoding]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for site, encoding in encodings.items():
        digest.update(f"{site}{type(site).__name__}{encoding.spec}{encoding.axis}".encode())
        digest.update(encoding.scale.tobytes() + encoding.zero_point.tobytes())
    return digest.hexdigest()
