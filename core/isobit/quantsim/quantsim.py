"""QuantSim: the facade a person uses. One model, one target, and everything from placement to export."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from isobit.backend.checked_model import CheckedModel
from isobit.backend.contract import Backend, BackendModel
from isobit.calibration.needed_statistics import observed_sites
from isobit.calibration.scheme import Calibrator, parse_calibrator
from isobit.data import Batch, Dataset, example_to_record
from isobit.edits.edit import Edit
from isobit.encodings.encoding import Encoding, Encodings
from isobit.encodings.quant_spec import QuantSpec
from isobit.errors import OutputError
from isobit.formats.isobit_json import IsobitJson
from isobit.graph.graph import Graph
from isobit.graph.sites import Site
from isobit.html_report import TensorPlot
from isobit.placement.plan import Plan
from isobit.placement.quant_config import QuantConfig
from isobit.plugins import registry
from isobit.quantsim.apply import apply_technique, calibrate, observe_for, recalibrate, uses_data
from isobit.quantsim.checkpoint import Checkpoint
from isobit.quantsim.encodings_files import encodings_from
from isobit.quantsim.executor import ExecutorLike, OnExecutor
from isobit.quantsim.export import ExportResult, export
from isobit.quantsim.load_encodings import LoadReport, load_encodings
from isobit.quantsim.observe import Passes, Runner
from isobit.quantsim.passes.run_here import RunHere
from isobit.quantsim.save_file import save
from isobit.quantsim.shown.plot_tensor import plot_tensor
from isobit.quantsim.shown.report import Report
from isobit.quantsim.simulation import Simulation
from isobit.quantsim.training.distill import Distill
from isobit.quantsim.training.exchange_adapters import Adapters
from isobit.quantsim.training.start_training import native_of, start_training
from isobit.recipes.recipe import StepResult
from isobit.statistics.sampling import SAMPLE_LIMIT
from isobit.statistics.statistics import Statistics
from isobit.targets.target import Target
from isobit.techniques.technique import Technique, TechniqueReport
from isobit.training.modes import TrainingModes


class QuantSim:
    """A model with simulated quantization.

    The model is copied; the original is never changed. `weights` and `activations` are formats such as ``"int4"`` or
    ``"int8 per-tensor"``; `overrides` maps patterns of tensor or weight names to a format, or to None for float;
    `exclude` lists patterns of node names or op types that stay in float. `example_inputs` is one batch, for frameworks
    that need one to capture a model. The first pass over data compares the opened model with the one that was given,
    where the backend can run that (ONNX, Keras), and a difference is an error; `check=False` skips it.

    Wherever there is `data`, these settings are about the passes over it: `batch_size` cuts whole arrays into batches,
    `inputs` picks the model's inputs from a batch, NaN or infinity is an error unless `ignore_non_finite`, and
    `progress` shows a bar (None: on a terminal). `executor` is a `concurrent.futures.Executor`, or a callable that
    makes one, whose workers share the batches; the result has the same bits. `resume` is a file: statistics in it
    count, and their batches are skipped; those of other data are refused. Ctrl-C ends the pass after the running batch
    and leaves what there is in it.
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
        check: bool = True,
    ) -> None:
        plugins = registry()
        chosen = plugins.target(target)
        config = QuantConfig(weights, activations, dict(overrides or {}), exclude)
        self._simulation = Simulation(plugins.open(model, example_inputs, backend), chosen, config)
        self._simulation.check = check
        self._simulation.example = example_to_record(example_inputs)
        self._adapters = Adapters(self._simulation)

    @classmethod
    def of_backend_model(cls, model: BackendModel | CheckedModel, target: Target, config: QuantConfig) -> QuantSim:
        """A simulator of a model that a backend has opened; the model is taken over, not copied."""
        return cls.of_simulation(Simulation(model, target, config))

    @classmethod
    def of_simulation(cls, simulation: Simulation) -> QuantSim:
        """The facade of a simulation."""
        sim = cls.__new__(cls)
        sim._simulation, sim._adapters = simulation, Adapters(simulation)
        return sim

    # --- what is there ---------------------------------------------------------------------------------------------

    @property
    def simulation(self) -> Simulation:
        """The state behind the facade."""
        return self._simulation

    @property
    def graph(self) -> Graph:
        """The neutral graph."""
        return self._simulation.graph

    @property
    def model(self) -> Any:
        """The framework's own model with the quantizers in it."""
        return native_of(self._simulation)

    @property
    def backend_model(self) -> CheckedModel:
        """The opened model behind the contract of `isobit.backend`."""
        return self._simulation.model

    @property
    def target(self) -> Target:
        """What the runtime can do."""
        return self._simulation.target

    @property
    def plan(self) -> Plan:
        """What is quantized, how, and what is not, and why."""
        return self._simulation.plan

    @property
    def edits(self) -> Sequence[Edit]:
        """The edits that were made of the model as it was opened."""
        return self._simulation.edits

    @property
    def encodings(self) -> Encodings:
        """Scale and zero point of every quantized site, also of those a runtime needs and the simulator does not."""
        return self._simulation.encodings

    @property
    def statistics(self) -> Statistics:
        """What was observed of the model as it is now."""
        return self._simulation.statistics

    @property
    def calibration(self) -> str | None:
        """How the encodings were found, in words; None before calibration."""
        return self._simulation.calibration

    @property
    def steps(self) -> Sequence[StepResult]:
        """What the steps of the recipe that was run did."""
        return tuple(self._simulation.steps)

    @property
    def report(self) -> Report:
        """What is quantized, what not and why, and what was done."""
        return Report.of(self._simulation)

    @property
    def adapters(self) -> Adapters:
        """The adapters (LoRA) beside the base: to exchange them, and to write and read each alone."""
        return self._adapters

    @property
    def distillation(self) -> Distill:
        """Called, it gives a loss by which the float model, as it is then, teaches the simulator in training."""
        return Distill(self._simulation.model)

    def plot(self, name: str) -> TensorPlot:
        """The values of a quantized tensor or weight, as calibration counted them, with its grid: notebooks show it."""
        return plot_tensor(self._simulation, name)

    # --- what it does ----------------------------------------------------------------------------------------------

    def apply(
        self,
        *techniques: Technique,
        data: Any = None,
        method: str | Calibrator = "minmax",
        batch_size: int = 32,
        inputs: Callable[[Any], Any] | None = None,
        ignore_non_finite: bool = False,
        executor: ExecutorLike | None = None,
        resume: str | PathLike[str] | None = None,
        progress: bool | None = None,
    ) -> list[TechniqueReport]:
        """Run techniques in order on the float model; a calibrated simulator must be calibrated again afterwards.

        `method` is the scheme of calibration of techniques that compare with a quantized model. Without `data`, what
        `observe` or a statistics file left serves. Raises DataError when a technique needs data and there is none.
        """
        calibrator = parse_calibrator(method, registry().calibrators())
        passes = None
        if data is not None:
            dataset = self._dataset(data, batch_size, inputs, ignore_non_finite)
            passes = self.passes(dataset, executor, resume, progress)
            observing = [type(technique).__name__ for technique in techniques if uses_data(technique)]
            if len(observing) > 1:
                dataset.require_passes(len(observing), " and ".join(observing))
        return [apply_technique(self._simulation, technique, passes, calibrator) for technique in techniques]

    def observe(
        self,
        *techniques: Technique,
        data: Any,
        method: str | Calibrator = "minmax",
        batch_size: int = 32,
        inputs: Callable[[Any], Any] | None = None,
        ignore_non_finite: bool = False,
        executor: ExecutorLike | None = None,
        resume: str | PathLike[str] | None = None,
        progress: bool | None = None,
    ) -> None:
        """Observe what techniques need of the model as it is now, and change nothing.

        Afterwards each of them, with whatever settings ask for the same, is applied without data; `save_statistics`
        keeps it for another day. What depends on a technique's own results (sequential rounding) stays to be observed.
        """
        calibrator = parse_calibrator(method, registry().calibrators())
        dataset = self._dataset(data, batch_size, inputs, ignore_non_finite)
        passes = self.passes(dataset, executor, resume, progress)
        for technique in techniques:
            observe_for(self._simulation, technique, passes, calibrator)

    def checkpoint(self) -> Checkpoint:
        """Everything that `apply` changes, for `roll_back`."""
        return self._simulation.checkpoint()

    def roll_back(self, checkpoint: Checkpoint) -> None:
        """Undo the techniques that were applied since; a checkpoint serves once."""
        self._simulation.roll_back(checkpoint)

    def freeze(self, encodings: Mapping[Site, Encoding] | Iterable[Site]) -> None:
        """Keep these encodings, or those that these sites have now, through every later calibration.

        Raises EncodingError for a site that the plan does not quantize, and for one without an encoding.
        """
        self._simulation.freeze(encodings)

    def thaw(self, sites: Iterable[Site] | None = None) -> None:
        """Let calibration decide again about these sites (None: all)."""
        self._simulation.thaw(sites)

    @property
    def frozen(self) -> Encodings:
        """The encodings that calibration keeps."""
        return self._simulation.frozen

    def trainable(
        self,
        mode: str = "learned",
        *,
        weights: str | None = None,
        activations: str | None = None,
        overrides: Mapping[str, str] | None = None,
        keep_zeros: bool = True,
    ) -> Any:
        """Let training move the grids from now on, and return `model`; an optimizer is made after this.

        `mode` is ``"learned"`` (LSQ), ``"pact"`` (only what is cut off moves a scale) or ``"frozen"`` (nothing does);
        `weights` and `activations` are the modes of one kind, `overrides` those of patterns of names. The scale of a
        bias stays that of its input times that of its weight, and grids that are shared stay shared. With `keep_zeros`
        quantized weights of which at least a quarter is exactly zero (`SparsifyWeights`) keep their zeros. Calibrating,
        or loading encodings, ends it. Raises ModelError before calibration, and where nothing would train.
        """
        modes = TrainingModes(mode, weights, activations, dict(overrides or {}))
        start_training(self._simulation, modes, keep_zeros=keep_zeros)
        return self.model

    def quantizer_parameters(self) -> list[Any]:
        """The parameters of the grids that are learned, for a group of their own in an optimizer."""
        return list(self._simulation.trained_model().grid_parameters)

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
        ``"sqnr"``) or a Calibrator. `sample_limit` is how many elements of each sample are counted (None: all; minimum
        and maximum always cover all).
        """
        calibrator = parse_calibrator(method, registry().calibrators())
        dataset = self._dataset(data, batch_size, inputs, ignore_non_finite)
        passes = self.passes(dataset, executor, resume, progress)
        limit = SAMPLE_LIMIT if sample_limit == -1 else sample_limit
        calibrate(self._simulation, passes, calibrator, limit, ignore_non_finite=ignore_non_finite)

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
        encodings, where = encodings_from(source, self.backend_model, format)
        return load_encodings(self._simulation, encodings, where, strict=strict, partial=partial, freeze=freeze)

    def recalibrate(self, method: str | Calibrator) -> None:
        """Set every quantizer by another scheme from the statistics that are there; needs no data."""
        recalibrate(self._simulation, parse_calibrator(method, registry().calibrators()))

    def save_statistics(self, path: str | PathLike[str]) -> None:
        """Write what was observed of the model as it is now, by calibration and for techniques, to an ``.npz`` file."""
        self._simulation.statistics.model = self._simulation.state_fingerprint()
        self._simulation.statistics.save(fspath(path))

    def load_statistics(self, *paths: str | PathLike[str]) -> None:
        """Take the statistics of these files, of parts of the data in this order.

        `recalibrate` sets the quantizers by them, and techniques that were observed for need no data. Raises DataError
        when a file is none, or is of another model: techniques that were applied before must be applied first.
        """
        simulation = self._simulation
        sites, key = observed_sites(simulation.observed_plan), simulation.state_fingerprint()
        simulation.statistics, simulation.data = Statistics.of_files(paths, sites, key), None

    def run(self, batch: Any) -> dict[str, NDArray[Any]]:
        """Outputs of the simulator by name, for one batch (array, tuple or dict of arrays).

        Raises ModelError when it is not calibrated; `run_float` runs the float model.
        """
        prepared = self._one_batch(batch)
        self._simulation.require_quantizers()
        return self.backend_model.run(prepared)

    def run_float(self, batch: Any) -> dict[str, NDArray[Any]]:
        """Outputs with every quantizer switched off, and without what techniques added to make up for quantization."""
        return self._simulation.run_float(self._one_batch(batch))

    def export(
        self,
        folder: str | PathLike[str],
        formats: str | Sequence[str] = ("onnx",),
        *,
        encodings_formats: str | Sequence[str] = (),
    ) -> ExportResult:
        """Write the model in `formats`, ``encodings.json`` and ``summary.txt`` into `folder`, all or nothing.

        ``"onnx"`` is ``model.qdq.onnx``; backends add formats of their framework, PyTorch ``"pt2"`` and
        ``"torchscript"``. `encodings_formats` are further files of encodings, such as ``"aimet-1.0.0"``: then the float
        ``model.onnx`` whose names they use is written too. Returns the paths by what they hold: ``"model"`` (the ONNX
        file) or the other format's name, ``"encodings"``, ``"summary"``, ``"float_model"``. Its `checks` say how far
        the ONNX file is from the simulator in each session of onnxruntime. Raises ModelError when the
        simulator is not calibrated, and OutputError for a format that the backend cannot write, or when a written file
        lacks an encoding that the target needs.
        """
        if not isinstance(folder, str | PathLike):
            raise OutputError(f"export needs a folder, not {folder!r}")
        plugins = registry()
        names = [encodings_formats] if isinstance(encodings_formats, str) else list(encodings_formats)
        further = [plugins.format(name) for name in names if name != IsobitJson.name]
        return export(self._simulation, Path(fspath(folder)), formats, further, lambda: plugins.backend("onnx"))

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything but the original weights to one file; `load` puts it on the float model again."""
        save(self._simulation, Path(fspath(path)))

    # --- inside ----------------------------------------------------------------------------------------------------

    def _dataset(
        self, data: Any, batch_size: int, inputs: Callable[[Any], Any] | None, ignore_non_finite: bool
    ) -> Dataset:
        return Dataset(data, self.graph, batch_size=batch_size, inputs=inputs, ignore_non_finite=ignore_non_finite)

    def passes(
        self, dataset: Dataset, executor: ExecutorLike | None, resume: str | PathLike[str] | None, progress: bool | None
    ) -> Passes:
        """How this simulator goes through checked data; the settings are those of `calibrate`."""
        runner: Runner = RunHere(dataset.notes, joins=resume is None)
        if executor is not None:
            runner = OnExecutor(executor, registry().backend_for(self.model), dataset.notes)
        return Passes(self._simulation, dataset, runner, None if resume is None else Path(fspath(resume)), progress)

    def _one_batch(self, batch: Any) -> Batch:
        return next(iter(Dataset([batch], self.graph)))
