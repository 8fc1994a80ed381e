"""QuantSim: the facade a person uses. One model, one target, and everything from placement to export."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from isobit.backend import Backend, BackendModel
from isobit.calibration.scheme import Calibrator, parse_calibrator
from isobit.checkpoint import Checkpoint
from isobit.cooking import StepResult
from isobit.counting import VARIABLE, counted_by_numpy
from isobit.data import Dataset, to_numpy
from isobit.edit import Edit, SetWeights
from isobit.encoding import Encoding, Encodings
from isobit.errors import DataError, EncodingError, ModelError, OutputError
from isobit.fingerprint import fingerprint
from isobit.graph import Graph
from isobit.observation import ExecutorLike, Observation, refuse_non_finite
from isobit.placement import place
from isobit.plan import Plan
from isobit.plugins import registry
from isobit.quant_spec import QuantSpec
from isobit.recording import Recorded
from isobit.report import Report
from isobit.resolve import constant_name, observed_sites, resolve
from isobit.sampling import SAMPLE_LIMIT
from isobit.sites import Input, Site, Weight
from isobit.statistics import Statistics
from isobit.target import Target
from isobit.techniques.technique import Technique, TechniqueReport
from isobit.wishes import Wishes

if TYPE_CHECKING:
    from isobit.loading import LoadReport


class QuantSim:
    """A model with simulated quantization.

    The model is copied; the original is never changed. `weights` and `activations` are formats such as ``"int4"`` or
    ``"int8 per-tensor"``; `overrides` maps patterns of tensor or weight names to a format, or to None for float;
    `exclude` lists patterns of node names or op types that stay in float. `example_inputs` is one batch, for frameworks
    that need one to capture a model.
    """

    def __init__(
        self,
        model: Any,
        example_inputs: Any = None,
        *,
        target: str | PathLike[str] | Target = "default",
        weights: str | QuantSpec | None = None,
        activations: str | QuantSpec | None = None,
        overrides: Mapping[str, str | QuantSpec | None] | None = None,
        exclude: str | Sequence[str] = (),
        backend: str | Backend | None = None,
    ) -> None:
        plugins = registry()
        self.target = plugins.target(target)
        self.wishes = Wishes(weights, activations, dict(overrides or {}), exclude)
        self._start(plugins.open(model, example_inputs, backend))

    @classmethod
    def of_backend_model(cls, model: BackendModel, target: Target, wishes: Wishes) -> QuantSim:
        """A simulator of a model that a backend has opened; the model is taken over, not copied."""
        sim = cls.__new__(cls)
        sim.target, sim.wishes = target, wishes
        sim._start(model)
        return sim

    def _start(self, model: BackendModel) -> None:
        self._model = model
        self.edits: list[Edit] = []
        self.statistics = Statistics()
        self.calibration: str | None = None  # how the encodings were found, in words
        self._frozen: dict[Site, Encoding] = {}
        self._fingerprint: dict[str, str] | None = None
        self._reports: list[TechniqueReport] = []
        self.steps: list[StepResult] = []  # of the recipe that was run
        self._notes: dict[str, None] = {}
        self.plan: Plan = place(model.graph, self.target, self.wishes)
        self._check_weights()

    # --- what is there ---------------------------------------------------------------------------------------------

    @property
    def graph(self) -> Graph:
        """The neutral graph."""
        return self._model.graph

    @property
    def model(self) -> Any:
        """The framework's own model with the quantizers in it."""
        return self._model.native

    @property
    def backend_model(self) -> BackendModel:
        """The opened model behind the contract of `isobit.backend`."""
        return self._model

    @property
    def encodings(self) -> Encodings:
        """Scale and zero point of every quantized site, also of those a runtime needs and the simulator does not."""
        simulated = dict(self._model.encodings())
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
    def report(self) -> Report:
        """What is quantized, what not and why, and what was done."""
        method = self.calibration or "not calibrated"
        return Report(
            self.target.name,
            self.graph,
            self.plan,
            self.encodings,
            tuple(self._reports),
            tuple(self._notes),
            method,
            tuple(self.steps),
        )

    def fingerprint(self) -> dict[str, str]:
        """Hashes of the float model as it was opened, by weight; made before the first edit."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.graph, self._model.weight)
        return self._fingerprint

    # --- what it does ----------------------------------------------------------------------------------------------

    def apply(self, *techniques: Technique, data: Any = None, batch_size: int = 32) -> list[TechniqueReport]:
        """Run techniques in order on the float model; a calibrated simulator must be calibrated again afterwards."""
        reports = []
        self.fingerprint()
        for technique in techniques:
            dataset = None if data is None else Dataset(data, self.graph, batch_size=batch_size)
            self._forget_calibration()
            done = len(self.edits)
            report = technique.apply(Recorded(self._model, self.edits), dataset, self.working_plan())
            self.plan = place(self.graph, self.target, self.wishes)
            self._thaw_changed(self.edits[done:])
            self.freeze(report.encodings)
            reports.append(report)
            self._note(dataset)
        self._reports += reports
        return reports

    def working_plan(self) -> Plan:
        """The plan as techniques see it: with what is frozen, and how an edited graph would be planned."""
        return replace(self.plan, frozen=self.frozen, replan=lambda graph: place(graph, self.target, self.wishes))

    def checkpoint(self) -> Checkpoint:
        """Everything that `apply` changes, for `roll_back`."""
        return Checkpoint(
            self._model.copy(),
            tuple(self.edits),
            dict(self._frozen),
            tuple(self._reports),
            self.statistics,
            self.calibration,
        )

    def roll_back(self, checkpoint: Checkpoint) -> None:
        """Undo the techniques that were applied since; a checkpoint serves once."""
        self._model = checkpoint.model
        self.edits, self._reports = list(checkpoint.edits), list(checkpoint.reports)
        self._frozen = dict(checkpoint.frozen)
        self.statistics, self.calibration = checkpoint.statistics, checkpoint.calibration
        self.plan = place(self.graph, self.target, self.wishes)

    def freeze(self, encodings: Mapping[Site, Encoding] | Iterable[Site]) -> None:
        """Keep these encodings, or those that these sites have now, through every later calibration.

        Raises EncodingError for a site that the plan does not quantize, and for one without an encoding.
        """
        wanted = encodings if isinstance(encodings, Mapping) else self._present(encodings)
        odd = next((site for site in wanted if site not in self.plan.placements), None)
        if odd is not None:
            raise EncodingError(f"{str(odd)!r} is not quantized in this plan: its encoding cannot be frozen")
        self._frozen.update(wanted)

    def thaw(self, sites: Iterable[Site] | None = None) -> None:
        """Let calibration decide again about these sites (None: all)."""
        for site in list(self._frozen) if sites is None else sites:
            self._frozen.pop(site, None)

    @property
    def frozen(self) -> Encodings:
        """The encodings that calibration keeps."""
        return Encodings(self._frozen)

    def calibrate(
        self,
        data: Any,
        method: str | Calibrator = "minmax",
        *,
        batch_size: int = 32,
        inputs: Callable[[Any], Any] | None = None,
        sample_limit: int | None = -1,
        ignore_non_finite: bool = False,
        executor: ExecutorLike | None = None,
        resume: str | PathLike[str] | None = None,
        progress: bool | None = None,
    ) -> None:
        """Observe the float model once over `data`, then set every quantizer.

        `method` is a scheme (``"minmax"``, ``"moving-average"``, ``"percentile=99.9"``, ``"entropy"``, ``"mse"``,
        ``"sqnr"``) or a Calibrator. `inputs` picks the model's inputs from a batch. `sample_limit` is how many elements
        of each sample are counted (None: all; minimum and maximum always cover all). NaN or infinity is an error unless
        `ignore_non_finite`.

        `executor` is a `concurrent.futures.Executor`, or a callable that makes one, whose workers share the batches;
        the result has the same bits. `resume` is a file: statistics in it count, and their batches are skipped; Ctrl-C
        ends the pass after the running batch and leaves what there is in the file.
        """
        calibrator = parse_calibrator(method, registry().calibrators())
        dataset = Dataset(data, self.graph, batch_size=batch_size, inputs=inputs, ignore_non_finite=ignore_non_finite)
        limit = SAMPLE_LIMIT if sample_limit == -1 else sample_limit
        observation = Observation(limit, executor, None if resume is None else Path(fspath(resume)), progress)
        active = list(self._model.encodings())
        self._model.enable(active, on=False)
        try:
            statistics = observation.statistics(self._model, self.plan, dataset)
            if not ignore_non_finite:
                refuse_non_finite(statistics, self._model, dataset)
        except BaseException:
            self._model.enable(active, on=True)
            raise
        self._note(dataset)
        if counted_by_numpy():
            self._notes[f"values were counted by NumPy, as {VARIABLE} says: with numba it is faster"] = None
        self.statistics = statistics
        self._set_encodings(calibrator)

    def load_encodings(
        self,
        source: str | PathLike[str] | Mapping[Site, Encoding],
        *,
        strict: bool = True,
        partial: bool = True,
        freeze: bool = False,
        format: str | None = None,
    ) -> LoadReport:
        """Set quantizers to encodings of a file (isobit's, AIMET's, a QDQ model) or of another simulator.

        `strict`: an entry that names nothing quantized, or has another format than the plan, is an error; without it
        such entries are reported, and the file's formats become overrides. `partial`: sites that the file says nothing
        of keep what they have; without it they stay in float from now on. `freeze`: later calibration keeps what was
        loaded. `format` names the file's format where the content does not tell. Biases follow from their input and
        weight unless they are in the file. Raises EncodingError, and then nothing has changed.
        """
        from isobit.loading import load_encodings

        return load_encodings(self, source, strict=strict, partial=partial, freeze=freeze, format=format)

    def adopt(self, plan: Plan, wishes: Wishes, encodings: Mapping[Site, Encoding], calibration: str) -> None:
        """Take over a plan of this graph, the wishes that it came from, and encodings found elsewhere."""
        wanted = {site: e for site, e in encodings.items() if plan.placements[site].simulated}
        gone = {site: None for site in self._model.encodings() if site not in wanted}
        self._model.set_quantizers({**gone, **wanted})
        self._model.enable(list(wanted), on=True)
        self.plan, self.wishes, self.calibration = plan, wishes, calibration
        self._frozen = {site: e for site, e in self._frozen.items() if encodings.get(site) == e}

    def recalibrate(self, method: str | Calibrator) -> None:
        """Set every quantizer by another scheme from the statistics that are there; needs no data."""
        if not len(self.statistics) and (self.calibration is None or observed_sites(self.plan)):
            raise DataError("there are no statistics yet: calibrate with data first")
        self._set_encodings(parse_calibrator(method, registry().calibrators()))

    def save_statistics(self, path: str | PathLike[str]) -> None:
        """Write the statistics of the calibration to an ``.npz`` file."""
        self.statistics.save(fspath(path))

    def load_statistics(self, *paths: str | PathLike[str]) -> None:
        """Take the statistics of these files, of parts of the data in this order; `recalibrate` sets the quantizers.

        Raises DataError when a file is none, or is of another model.
        """
        self.statistics = Statistics.of_files(paths, observed_sites(self.plan))

    def run(self, batch: Any) -> dict[str, NDArray[Any]]:
        """Outputs of the simulator by name, for one batch (array, tuple or dict of arrays)."""
        return self._model.run(self._one_batch(batch))

    def run_float(self, batch: Any) -> dict[str, NDArray[Any]]:
        """Outputs with every quantizer switched off."""
        prepared = self._one_batch(batch)
        active = list(self._model.encodings())
        self._model.enable(active, on=False)
        try:
            return self._model.run(prepared)
        finally:
            self._model.enable(active, on=True)

    def export(
        self,
        folder: str | PathLike[str],
        formats: str | Sequence[str] = ("onnx",),
        *,
        encodings_formats: str | Sequence[str] = (),
    ) -> dict[str, Path]:
        """Write the model in `formats`, ``encodings.json`` and ``summary.txt`` into `folder`, all or nothing.

        ``"onnx"`` is ``model.qdq.onnx``; backends add formats of their framework, PyTorch ``"pt2"`` and
        ``"torchscript"``. `encodings_formats` are further files of encodings, such as ``"aimet-1.0.0"``: then the float
        ``model.onnx`` whose names they use is written too. Returns the paths by what they hold: ``"model"`` (the ONNX
        file) or the other format's name, ``"encodings"``, ``"summary"``, ``"float_model"``. Raises ModelError when the
        simulator is not calibrated, and OutputError for a format that the backend cannot write, or when a written file
        lacks an encoding that the target needs.
        """
        from isobit.exporting import export

        if not isinstance(folder, str | PathLike):
            raise OutputError(f"export needs a folder, not {folder!r}")
        return export(self, Path(fspath(folder)), formats, encodings_formats)

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything but the original weights to one file; `isobit.load` puts it on the float model again."""
        from isobit.saving import save

        save(self, Path(fspath(path)))

    def restore(
        self,
        edits: Sequence[Edit],
        encodings: Encodings,
        statistics: Statistics,
        frozen: Encodings,
        *,
        calibration: str | None,
    ) -> None:
        """Replay what a saved simulator held; the inverse of `save` for an opened float model."""
        self.fingerprint()
        if edits:
            Recorded(self._model, self.edits).edit(edits)
        self.plan = place(self.graph, self.target, self.wishes)
        self._model.set_quantizers(dict(encodings))
        self.statistics, self.calibration = statistics, calibration
        self.freeze(frozen)

    def require_calibrated(self) -> None:
        """Raise ModelError when a planned quantizer has no encoding."""
        encodings = self.encodings
        missing = [site for site in self.plan.placements if site not in encodings]
        if missing:
            raise ModelError(
                f"{len(missing)} sites have no encoding yet, {str(missing[0])!r} among them: calibrate first"
            )

    # --- inside ----------------------------------------------------------------------------------------------------

    def _set_encodings(self, calibrator: Calibrator) -> None:
        resolved = resolve(self.graph, self.plan, self.statistics, calibrator, self._model.weight, frozen=self._frozen)
        self._notes.update(dict.fromkeys(resolved.notes))
        wanted = {s: e for s, e in resolved.encodings.items() if self.plan.placements[s].simulated}
        gone = {site: None for site in self._model.encodings() if site not in wanted}
        self._model.set_quantizers({**gone, **wanted})
        self._model.enable(list(wanted), on=True)
        self.calibration = repr(calibrator)

    def _present(self, sites: Iterable[Site]) -> dict[Site, Encoding]:
        encodings = self.encodings
        wanted = list(sites)
        missing = next((site for site in wanted if site not in encodings), None)
        if missing is not None:
            raise EncodingError(f"{str(missing)!r} has no encoding to freeze: calibrate or load encodings first")
        return {site: encodings[site] for site in wanted}

    def _forget_calibration(self) -> None:
        """An edited model is another model: its quantizers and statistics go."""
        if self.calibration is not None:
            self._model.set_quantizers(dict.fromkeys(self._model.encodings()))
            self.statistics, self.calibration = Statistics(), None

    def _thaw_changed(self, edits: Sequence[Edit]) -> None:
        """Forget the frozen encodings of sites that are gone and of constants that got new values."""
        changed = {name for edit in edits if isinstance(edit, SetWeights) for name in edit.weights}
        for site in list(self._frozen):
            if site not in self.plan.placements or constant_name(self.graph, site) in changed:
                del self._frozen[site]

    def _one_batch(self, batch: Any) -> dict[str, NDArray[Any]]:
        if isinstance(batch, Mapping):
            batch = {name: to_numpy(value) for name, value in batch.items()}
        return next(iter(Dataset([batch], self.graph)))

    def _note(self, dataset: Dataset | None) -> None:
        if dataset is not None:
            self._notes.update(dataset.notes)

    def _check_weights(self) -> None:
        """Refuse NaN and infinity in parameters and in all that is quantized; a mask may well hold -inf."""
        for name, info in self.graph.weights.items():
            uses = self.graph.uses(name)
            sites = (Weight(name), *(Input(use.node.name, use.index) for use in uses))
            matters = any(use.role != "data" for use in uses) or any(site in self.plan.placements for site in sites)
            if info.is_float and matters and not np.all(np.isfinite(value := self._model.weight(name))):
                bad = "NaN" if np.any(np.isnan(value)) else "infinity"
                raise ModelError(f"weight {name!r} holds {bad}: the model cannot be quantized")
