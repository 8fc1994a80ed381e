"""Simulation: the state of a simulator, and the few ways in which it changes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import copy
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from isobit.backend.checked_model import CheckedModel
from isobit.backend.contract import BackendModel, Differentiable
from isobit.backend.optional import CountsBatches, TrainsGrids
from isobit.calibration.fitting import fit
from isobit.calibration.range_memo import RangeMemo
from isobit.calibration.resolve import Resolved, bias_encoding, resolve_weights, resolver
from isobit.calibration.scheme import Calibrator
from isobit.data import Batch
from isobit.edits.edit import Edit, SetWeights, TrainedWeights, changes_float_model
from isobit.encodings.encoding import Encoding, Encodings
from isobit.errors import EncodingError, ModelError
from isobit.graph.fingerprint import digest, fingerprint
from isobit.graph.graph import Graph
from isobit.graph.sites import Site
from isobit.placement.place import place
from isobit.placement.plan import Plan, constant_name
from isobit.placement.quant_config import QuantConfig
from isobit.quantsim.checkpoint import Checkpoint
from isobit.quantsim.checks.finite_weights import check_weights
from isobit.quantsim.checks.given import check_given
from isobit.quantsim.judging.judge import Judge
from isobit.quantsim.training.float_weights import let_float_weights_in
from isobit.quantsim.training.trained_weights import trained_since
from isobit.recipes.recipe import StepResult
from isobit.statistics.statistics import Statistics
from isobit.targets.target import Target
from isobit.techniques.layers.normal import NormalPerChannel
from isobit.techniques.technique import TechniqueReport


class Simulation:
    """A model, the plan for it, and all that was decided, observed and done.

    `data` is what `statistics` were observed on, by identity; `calibration` says how the encodings were found, in
    words, or is None.
    """

    def __init__(self, model: BackendModel | CheckedModel, target: Target, config: QuantConfig) -> None:
        self.model, self.target, self.config = CheckedModel.of(model), target, config
        self.plan: Plan = place(model.graph, target, config, removed=self.model.removed)
        self.statistics = Statistics()
        self.data: object = None
        self.calibration: str | None = None
        self.reports: list[TechniqueReport] = []
        self.steps: list[StepResult] = []  # of the recipe that was run
        self.batch_norms: Mapping[str, NormalPerChannel] = {}
        self.notes: dict[str, None] = {}
        self.reference: tuple[Batch, Mapping[str, NDArray[Any]]] | None = None  # a batch, and the float outputs of it
        self.judge: Judge | None = None  # of the outputs on that batch, and on more where it is small
        self._judged_at = 0  # the number of edits of the model that the judge holds the outputs of
        self.example: Any = None  # the batch that the model was opened with, as a record of `isobit.data`
        self.is_trained = False  # whether grids were given to training since they were set
        self.exchanges: list[tuple[int, str]] = []  # adapters that took a place, each after so many edits
        self.beside_adapters: dict[str, dict[Site, Encoding]] = {}  # what was learned beside those that are not there
        self.check = True  # whether the opened model is compared with the model as given
        self._compared_at: int | None = None  # the number of edits of the model that was
        self.warned: set[str] = set()  # what a warning said already
        self.ranges = RangeMemo()
        self._frozen: dict[Site, Encoding] = {}
        self._fitted = False  # whether the data, or encodings from elsewhere, had a say in the plan
        self._fingerprint: dict[str, str] | None = None
        self._untrained: dict[str, str] | None = None  # hashes of the weights that training starts from
        self._float_model: tuple[tuple[int, str], CheckedModel] | None = None  # and the state that it is of
        check_weights(self.model, self.plan, "the model cannot be quantized")
        self.model.follow_edits(let_float_weights_in)

    # --- what is there ---------------------------------------------------------------------------------------------

    @property
    def graph(self) -> Graph:
        """The neutral graph."""
        return self.model.graph

    @property
    def edits(self) -> Sequence[Edit]:
        """All edits since the model was opened."""
        return self.model.edit_log

    @property
    def encodings(self) -> Encodings:
        """Scale and zero point of every quantized site, also of those a runtime needs and the simulator does not."""
        simulated = dict(self.model.encodings())
        derived = {
            placement.site: simulated[root]
            for members in self.plan.groups().values()
            for placement in members
            for root in [next((m.site for m in members if m.site in simulated), None)]
            if root is not None
        }
        everything: dict[Site, Any] = {**derived, **simulated}
        ordered = {site: everything[site] for site in self.plan.placements if site in everything}
        return Encodings({**ordered, **everything})

    @property
    def frozen(self) -> Encodings:
        """The encodings that calibration keeps."""
        return Encodings(self._frozen)

    @property
    def observed_plan(self) -> Plan:
        """The plan before the data had a say in it: what calibration observes."""
        return self.plan_for(self.graph) if self._fitted else self.plan

    def plan_for(self, graph: Graph) -> Plan:
        """The plan of an edited graph, for the same target and config, whatever the data says."""
        return self.place(graph, self.config)

    def place(self, graph: Graph, config: QuantConfig, apart: Mapping[str, str] = MappingProxyType({})) -> Plan:
        """The plan of a graph for a config, which may name what folding has removed."""
        return place(graph, self.target, config, apart, self.model.removed)

    def fingerprint(self) -> dict[str, str]:
        """Hashes of the float model as it was opened, by weight; made before the first edit."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.graph, self.model.weight)
        return self._fingerprint

    def state_fingerprint(self) -> str:
        """One hash of what statistics are of: the float model with its edits, without those that compensate."""
        hashes = self.fingerprint()
        if self.edits:
            before = {name: done.before for name, done in self.model.compensations.items()}
            hashes = fingerprint(self.graph, self.model.weight, before)
        return digest(hashes)

    def float_model(self) -> CheckedModel:
        """The float model: the model itself with its quantizers off, or a copy without what compensates for them.

        Training makes the copy anew.
        """
        if not self.model.compensations:
            return self.model
        trained = digest(fingerprint(self.graph, self.model.weight)) if isinstance(self.model, Differentiable) else ""
        key = (len(self.edits), trained)
        if self._float_model is None or self._float_model[0] != key:
            self._float_model = key, self.model.uncompensated()
        return self._float_model[1]

    def run_float(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """Outputs of the float model."""
        model = self.float_model()
        active = list(model.encodings())
        model.enable(active, on=False)
        try:
            return model.run(batch)
        finally:
            model.enable(active, on=True)

    def require_calibrated(self) -> None:
        """Raise ModelError when a planned quantizer has no encoding."""
        encodings = self.encodings
        missing = [site for site in self.plan.placements if site not in encodings]
        if missing:
            raise ModelError(
                f"{len(missing)} sites have no encoding yet, {str(missing[0])!r} among them: calibrate first"
            )

    def require_numbers(self) -> None:
        """Raise ModelError where a weight has become NaN or infinite: nothing computes what was trained any more."""
        advice = (
            "the loss or a gradient of some step was no number. Go back to weights from before it (load_state_dict, "
            "load_weights, isobit.load), and lower the learning rate"
        )
        check_weights(self.model, self.plan, advice)

    def require_quantizers(self) -> None:
        """Raise ModelError when the plan has quantizers and the model none: it would run in float unsaid."""
        if not self.model.encodings() and any(placement.simulated for placement in self.plan.placements.values()):
            raise ModelError(
                "the simulator is not calibrated, so it would run in float: calibrate or load encodings first, or ask "
                "for the float outputs with run_float"
            )

    # --- what changes it -------------------------------------------------------------------------------------------

    def remove_quantizers(self) -> None:
        """Make the model float again; what was observed of it stays."""
        encodings = self.model.encodings()
        if encodings or self.calibration is not None:
            self.model.set_quantizers(dict.fromkeys(encodings))
            self.calibration, self.is_trained = None, False
            self.plan, self._fitted = self.observed_plan, False

    def take_report(self, report: TechniqueReport, edits_before: int) -> None:
        """Take over what a technique did since there were so many edits.

        An edited model is another one to observe, but for edits that only compensate for quantization.
        """
        if any(changes_float_model(edit) for edit in self.edits[edits_before:]):
            touched = report.touched
            self.statistics = Statistics() if touched is None else self.statistics.without(touched)
        self.plan, self._fitted = self.plan_for(self.graph), False
        self._thaw_changed(self.edits[edits_before:])
        self.freeze(report.encodings)
        self.batch_norms = {**self.batch_norms, **report.batch_norms}
        self.reports.append(report)

    def keep_reference(self, batches: Sequence[Batch], *, are_other: bool = False) -> None:
        """Keep some batches and the float model's outputs; `are_other`: in place of those that the same model gave."""
        if batches and (self.judge is None or (are_other and self._judged_at == len(self.edits))):
            model = self.float_model()
            self.judge, self._judged_at = Judge.of(model, batches), len(self.edits)
            first = self.judge.samples[0]
            self.reference = first if self.judge.is_of_outputs else (first[0], model.run(first[0]))
            is_function_kept = all(report.technique == "FoldBatchNorms" for report in self.reports)
            is_due = self.check and self._compared_at != len(self.edits)
            if is_due and is_function_kept and (self.reports or not self.edits):
                note = check_given(self.model, *self.reference)
                if note:
                    self.notes[note] = None
                self._compared_at = len(self.edits)

    def set_encodings(self, calibrator: Calibrator) -> None:
        """Choose every encoding by the statistics, and set the quantizers."""
        self.take(self.resolver()(calibrator), calibrator)

    def resolver(self) -> Callable[[Calibrator], Resolved]:
        """What chooses every encoding by a scheme, for the plan as the data leaves it; weights once for all schemes."""
        self.notes.update(dict.fromkeys(self._fit_plan()))
        read, frozen, memo = self.model.weight, self._frozen, self.ranges
        return resolver(self.graph, self.plan, self.statistics, read, frozen=frozen, memo=memo)

    def take(self, resolved: Resolved, calibrator: Calibrator) -> None:
        """Set the quantizers to what was resolved."""
        self.notes.update(dict.fromkeys(resolved.notes))
        self._quantize(resolved.encodings)
        self.calibration = repr(calibrator)

    def adopt(self, plan: Plan, config: QuantConfig, encodings: Mapping[Site, Encoding], calibration: str) -> None:
        """Take over a plan of this graph, the config that it came from, and encodings found elsewhere."""
        self._fitted = self._fitted or plan is not self.plan
        self.plan, self.config, self.calibration = plan, config, calibration
        self._quantize(encodings)
        self._frozen = {site: e for site, e in self._frozen.items() if encodings.get(site) == e}

    def _quantize(self, encodings: Mapping[Site, Encoding]) -> None:
        simulated = set_simulated(self.model, self.plan, encodings)
        self.is_trained = False
        self.model.enable(list(simulated), on=True)
        self.relate()

    def freeze(self, encodings: Mapping[Site, Encoding] | Iterable[Site]) -> None:
        """Keep these encodings, or those that these sites have now, through every later calibration.

        Raises EncodingError for a site that the plan does not quantize, and for one without an encoding.
        """
        kept = encodings if isinstance(encodings, Mapping) else self._present(encodings)
        odd = next((site for site in kept if site not in self.plan.placements), None)
        if odd is not None:
            raise EncodingError(f"{str(odd)!r} is not quantized in this plan: its encoding cannot be frozen")
        self._frozen.update(kept)

    def thaw(self, sites: Iterable[Site] | None = None) -> None:
        """Let calibration decide again about these sites (None: all)."""
        for site in list(self._frozen) if sites is None else sites:
            self._frozen.pop(site, None)

    def take_exchanged(self, learned: Mapping[Site, Encoding], forgotten: Collection[Site] = ()) -> None:
        """Go on with a model of which an adapter was exchanged, with the encodings that were `learned` beside it.

        Other sites keep theirs; constants that have none, or whose old one is `forgotten`, get it by their values.
        """
        self._untrained = None
        self._replan()
        self.reference, self.judge, self._float_model = None, None, None
        if self.calibration is None:
            return
        old = {site: encoding for site, encoding in self.model.encodings().items() if site not in forgotten}
        placements = self.plan.placements
        known = {site: encoding for site, encoding in {**old, **learned}.items() if site in placements}
        known |= resolve_weights(self.graph, self.plan, self.model.weight, frozen=known)
        for placement in self.plan.of_kind("bias"):
            if placement.scale_of is not None and all(site in known for site in placement.scale_of):
                known[placement.site] = bias_encoding(placement, known)
        set_simulated(self.model, self.plan, known)
        self.relate()

    def relate(self) -> None:
        """Tell a model that trains what its encodings owe each other, and remember the weights that it starts from."""
        if isinstance(self.model.inner, TrainsGrids):
            self.model.inner.relate(self.plan.relations())
            if self._untrained is None:
                original = self.fingerprint()
                self._untrained = fingerprint(self.graph, self.model.weight) if self.edits else original

    def trained_weights(self) -> TrainedWeights | None:
        """What training has changed since quantizers were set on the model as it was edited, as an edit."""
        return None if self._untrained is None else trained_since(self.model, self._untrained)

    def note_training(self) -> None:
        """Add what training has changed to the log of edits: those that follow are of these weights."""
        self.fingerprint()  # of the model as it came
        trained = self.trained_weights()
        self.model.edit_log += [] if trained is None else [trained]
        self._untrained = None

    def trained_model(self) -> TrainsGrids:
        """The backend's model, which trains. Raises ModelError where it does not."""
        if not isinstance(self.model.inner, TrainsGrids):
            raise ModelError(
                f"a model of the {self.model.backend} backend does not train: open the PyTorch or Keras model"
            )
        return self.model.inner

    def checkpoint(self) -> Checkpoint:
        """Everything that a technique changes, for `roll_back`."""
        return Checkpoint(
            self.model.copy(),
            dict(self._frozen),
            tuple(self.reports),
            self.statistics,
            self.calibration,
            self.batch_norms,
        )

    def roll_back(self, checkpoint: Checkpoint) -> None:
        """Undo the techniques that were applied since; a checkpoint serves once."""
        self.model = checkpoint.model
        self.reports = list(checkpoint.reports)
        self._frozen = dict(checkpoint.frozen)
        self.statistics, self.calibration = checkpoint.statistics, checkpoint.calibration
        self.batch_norms = checkpoint.batch_norms
        self._untrained = None
        self._replan()

    def restore(
        self,
        encodings: Encodings,
        statistics: Statistics,
        frozen: Encodings,
        *,
        calibration: str | None,
        is_trained: bool,
        batches_seen: Mapping[str, int],
    ) -> None:
        """Take over what a saved simulator held, on the float model after its edits."""
        if isinstance(self.model.inner, CountsBatches):
            self.model.inner.set_batches_seen(batches_seen)
        self.is_trained = is_trained
        self.statistics, self.calibration = statistics, calibration
        self._replan()
        self.model.set_quantizers(dict(encodings))
        self.relate()
        self.freeze(frozen)

    def copy(self) -> Simulation:
        """An independent copy; what was observed is shared until one of the two observes anew."""
        other = copy(self)
        other.model, other._frozen = self.model.copy(), dict(self._frozen)
        other.reports, other.steps = list(self.reports), list(self.steps)
        other.exchanges, other.beside_adapters = list(self.exchanges), dict(self.beside_adapters)
        other.notes, other.warned, other._float_model = dict(self.notes), set(self.warned), None
        other.data = None  # so that a pass over the same data begins anew, in statistics of its own
        return other

    # --- inside ----------------------------------------------------------------------------------------------------

    def _replan(self) -> None:
        """The plan of a state that is brought back, in which the data has its say where it was calibrated."""
        self.plan, self._fitted = self.plan_for(self.graph), False
        if self.calibration is not None and len(self.statistics):
            self._fit_plan()

    def _fit_plan(self) -> tuple[str, ...]:
        """Leave in float what the data forbids a grid; returns what there is to tell."""
        plan = self.observed_plan
        fitted = fit(self.graph, plan, self.statistics, self._frozen)
        self.plan = self.place(self.graph, self.config, fitted.apart) if fitted.apart else plan
        self._fitted = bool(fitted.apart)
        return fitted.notes

    def _present(self, sites: Iterable[Site]) -> dict[Site, Encoding]:
        encodings = self.encodings
        asked = list(sites)
        missing = next((site for site in asked if site not in encodings), None)
        if missing is not None:
            raise EncodingError(f"{str(missing)!r} has no encoding to freeze: calibrate or load encodings first")
        return {site: encodings[site] for site in asked}

    def _thaw_changed(self, edits: Sequence[Edit]) -> None:
        """Forget the frozen encodings of sites that are gone and of constants that got new values."""
        changed = {name for edit in edits if isinstance(edit, SetWeights) for name in edit.weights}
        for site in list(self._frozen):
            if site not in self.plan.placements or constant_name(self.graph, site) in changed:
                del self._frozen[site]


def set_simulated(model: CheckedModel, plan: Plan, encodings: Mapping[Site, Encoding]) -> dict[Site, Encoding]:
    """Give a model the quantizers of these encodings that are simulated, and no others; returns them."""
    simulated = {site: e for site, e in encodings.items() if plan.placements[site].simulated}
    gone = {site: None for site in model.encodings() if site not in simulated}
    model.set_quantizers({**gone, **simulated})
    return simulated
