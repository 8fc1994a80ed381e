"""One run of `isobit quantize`, step by step. All errors of the request are found before the work."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from isobit.analysis.analyze import analyze
from isobit.backend.checked_model import CheckedModel
from isobit.calibration.scheme import parse_calibrator
from isobit.cli.quantize_options import Job, check_there
from isobit.cli.quantizing.evaluate_file import load_evaluate
from isobit.cli.quantizing.evaluation import Evaluator
from isobit.cli.quantizing.latency import first_samples, measure, processor_time_tells
from isobit.cli.quantizing.model_files import deploy, file_size, write_float
from isobit.cli.quantizing.next_command import next_command
from isobit.cli.quantizing.outcome import Outcome, format_label, outcome_sections
from isobit.cli.terminal import line
from isobit.cli.user_data.calibration_files import holds_images, load
from isobit.cli.user_data.data_files import DataFiles
from isobit.cli.user_data.file_batches import fixed_batch
from isobit.cli.user_data.open_on_data import open_on_data
from isobit.data import Dataset
from isobit.defaults import DEFAULT_RECIPE
from isobit.errors import DataError, IsobitError, ModelError, RecipeError
from isobit.files import check_writable, temporary_folder
from isobit.html_report import notes, write_page
from isobit.plugins import registry
from isobit.quantsim.checks.quality import judgement
from isobit.quantsim.export import USUAL
from isobit.quantsim.judging.evaluate import Evaluate, check_evaluate, figures_of
from isobit.quantsim.judging.figures import Figures, require_numbers, without_number
from isobit.quantsim.quantize import open_simulator, quantize
from isobit.quantsim.shown.simulator_sections import in_float
from isobit.threads import available_threads

if TYPE_CHECKING:
    from isobit.backend.optional import Deployed

#: Where a model's files are larger (bytes), it is not written in float once more to be measured.
_LARGEST_TIDIED = 100_000_000


class Run:
    """The steps, in the order of their definition; `quiet` prints nothing on the way."""

    def __init__(self, job: Job, *, quiet: bool = False) -> None:
        self.job = job
        self._quiet = quiet
        self._notes: list[str] = []
        self._evaluator: Evaluator | None = None
        self._evaluation_files: DataFiles | None = None
        self._float_model: CheckedModel | None = None
        self._score: Evaluate | None = None  # of a Python file
        self._scores: dict[str, Figures] = {}

    def prepare(self) -> None:
        """Open everything and check it: the output folder, the method, the recipe, the model, the data."""
        job = self.job
        check_writable(job.out, USUAL)
        self._calibrator = parse_calibrator(job.method, registry().calibrators())
        self._recipe = registry().recipe(job.recipe or DEFAULT_RECIPE)
        if job.recipe and not job.fold:
            raise RecipeError("--no-fold is for no recipe: a recipe says itself whether batch norms are folded")
        check_there(job.model)
        opened = partial(
            open_simulator,
            job.model,
            target=job.target,
            weights=job.weights,
            activations=job.activations,
            overrides=job.overrides,
            exclude=job.exclude,
            backend=job.backend,
            check=job.check,
        )
        self.sim, self.data = open_on_data(opened, job.data, job.images, batch_size=job.batch_size, samples=job.samples)
        self.graph = self.sim.graph
        self._say_read(self.data)
        with self.data.named():
            self.first_batch = self._dataset(self.data).first()
        if job.evaluate is not None and job.evaluate.suffix.lower() == ".py":
            self._score = load_evaluate(job.evaluate, self.graph, job.images, job.batch_size, job.ignore_non_finite)
            check_evaluate(self._score, picklable=False)
            self._scores["float"] = figures_of(self._score, self.sim.backend_model)
            require_numbers(self._scores["float"])
        elif job.evaluate is not None:
            files = load(job.evaluate, self.graph, job.images, batch_size=job.batch_size)
            self._say_read(files)
            self._prepare_evaluation(files)
        self._check_image_options()

    def quantize(self) -> None:
        """Follow the recipe, calibrate, and measure the simulator against the float model."""
        job = self.job
        with self.data.named():
            quantize(
                self.sim,
                self.data.source,
                method=self._calibrator,
                recipe=self._recipe if job.fold else None,
                techniques=None if job.fold else (),
                batch_size=job.batch_size,
                ignore_non_finite=job.ignore_non_finite,
            )
        self._notes += [str(step) for step in self.sim.steps if step.before is not None or step.why]
        if self._evaluator is not None and self._evaluation_files is not None and self._float_model is not None:
            with self._evaluation_files.named():
                self._evaluator.compare(self._float_model.run, self.sim.backend_model.run)
        self._float_model = None
        if self._score is not None:
            self._scores["simulated"] = figures_of(self._score, self.sim.backend_model)
            if bad := without_number(self._scores["simulated"]):
                self._notes.append(f"evaluate returned {bad} for the quantized model")

    def write(self) -> None:
        """Write the files."""
        self.paths = self.sim.export(self.job.out)

    def measure_files(self) -> Outcome:
        """Size, latency and accuracy of the files that were written."""
        report = self.sim.report
        outcome = Outcome(
            format_label(self.sim.plan),
            self.sim.target.name,
            self.job.method,
            float_bytes=file_size(self.job.model),
            quantized_bytes=file_size(self.paths["model"]),
            coverage=report.coverage,
            sqnr=self.paths.sqnr,
            checks=[str(check) for check in self.paths.checks],
            files=self.paths,
            left_in_float=report.left_in_float,
        )
        try:
            self._run_exported(outcome)
        except ModelError as error:
            self._notes.append(f"the exported model was not measured: {error}")
        if self._evaluator is not None:
            outcome.evaluation = self._evaluator.result
            self._notes += self._evaluator.result.notes
        outcome.scores = self._scores
        ratios = {**outcome.sqnr, **(outcome.evaluation.sqnr if outcome.evaluation is not None else {})}
        if ratios and judgement(min(ratios.values())) == "poor" and not self.paths.is_noisy:
            outcome.is_poor = True
            outcome.next_command = next_command(self.job, self.sim.target.activation_types)
        outcome.notes = list(dict.fromkeys([*report.graph.notes, *report.notes, *self._notes]))
        return outcome

    def report(self, outcome: Outcome, path: Path) -> None:
        """Analyze the simulator on the calibration data, and write all that was measured as HTML."""
        job = self.job
        sections = outcome_sections(outcome)
        try:
            with self.data.named():
                found = analyze(
                    self.sim, self.data.source, batch_size=job.batch_size, ignore_non_finite=job.ignore_non_finite
                )
            sections += found.sections()
        except ModelError as error:
            outcome.notes.append(f"what hurts was not analyzed: {error}")
            sections += [in_float(outcome.left_in_float), notes("Notes", outcome.notes, half=True)]
        write_page(path, "isobit quantize", f"{job.model.name}, target {outcome.target}, {outcome.formats}", sections)
        self.paths["report"] = path

    # --- inside ----------------------------------------------------------------------------------------------------

    def _run_exported(self, outcome: Outcome) -> None:
        threads = self.job.threads or available_threads()
        exported = deploy(self.paths["model"], threads)
        if exported is None:
            self._notes.append(
                "latency and accuracy of the exported file were not measured: onnxruntime is not installed"
            )
            return
        if self._evaluator is not None and self._evaluation_files is not None:
            with self._evaluation_files.named():
                self._evaluator.exported(exported.run)
        if not self.job.latency_batch:
            return
        batch = first_samples(self.first_batch, self.job.latency_batch, fixed_batch(self.graph))
        with temporary_folder() as folder:
            written = self._write_tidied(outcome, folder / "float.onnx")
            original = self._deploy_float(self.job.model, "the float model", threads)
            tidied = self._deploy_float(written, "the network in float as isobit writes it", threads)
            outcome.latency = measure(original, exported, batch, threads, tidied=tidied)
            if not outcome.latency.is_steady and processor_time_tells(original, exported, tidied):
                # Other programs had the processors: no number of rounds on the wall would tell the models apart.
                given = None if original is None else self.job.model
                written = None if tidied is None else written
                original = exported = tidied = None  # more sessions of large files need the memory
                exported = deploy(self.paths["model"], 1)
                original, tidied = (None if path is None else deploy(path, 1) for path in (given, written))
                if exported is not None:
                    outcome.latency = measure(original, exported, batch, 1, "processor", tidied=tidied)
            tidied = None  # some systems remove no file that is loaded

    def _deploy_float(self, path: Path | None, what: str, threads: int) -> Deployed | None:
        try:
            return None if path is None else deploy(path, threads)
        except ModelError as error:
            self._notes.append(f"latency of {what} was not measured: {error}")
            return None

    def _write_tidied(self, outcome: Outcome, path: Path) -> Path | None:
        """The network in float as isobit writes it, which tells what tidying brings from what integers do."""
        sizes = (outcome.float_bytes or 0, outcome.quantized_bytes or 0)
        if not self.sim.plan.placements or max(sizes) > _LARGEST_TIDIED:
            return None
        try:
            if not write_float(self.sim.backend_model.inner, path):
                return None
        except IsobitError as error:
            self._notes.append(f"the network in float as isobit writes it was not measured: {error}")
            return None
        outcome.tidied_bytes = file_size(path)
        return path

    def _prepare_evaluation(self, files: DataFiles) -> None:
        if not files.labels:
            self._notes.append(
                f"{files.path} holds no labels, so accuracy was not measured; agreement with the float model was"
            )
        dataset = self._dataset(files)
        with files.named():
            dataset.first()
            self._evaluator = Evaluator.of(dataset, files.labels)
        self._evaluation_files = files
        self._float_model = self.sim.backend_model.copy()

    def _say_read(self, files: DataFiles) -> None:
        if self._quiet:
            self._notes += files.notes
        else:
            for note in files.notes:
                line(note)

    def _dataset(self, files: DataFiles) -> Dataset:
        job = self.job
        return Dataset(files.source, self.graph, batch_size=job.batch_size, ignore_non_finite=job.ignore_non_finite)

    def _check_image_options(self) -> None:
        paths = [path for path in (self.job.data, self.job.evaluate) if path is not None and path.suffix != ".py"]
        given_options = self.job.images.given
        if given_options and not any(holds_images(path) for path in paths):
            raise DataError(
                f"{given_options[0]} is for images, and {self.job.data} holds arrays, which are used as they are"
            )
