"""Export: the QDQ model by one path for every backend, and what a backend can write in its framework's own formats."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from isobit.backend.contract import BackendModel
from isobit.backend.optional import HoldsSessions, NativeExporter, QdqWriter, RunsWritten, ShowsRounding
from isobit.encodings.encoding import Encodings
from isobit.errors import FileWarning, OutputError, PluginError, did_you_mean
from isobit.files import check_writable, write_folder
from isobit.formats.format import EncodingsFormat
from isobit.formats.isobit_json import IsobitJson
from isobit.formats.names import Names
from isobit.quantsim.checks.encodings_file import check_file
from isobit.quantsim.checks.given import DIFFERENT_IN_EVERY_RUN
from isobit.quantsim.checks.parts import part_sqnr
from isobit.quantsim.checks.quality import ADVICE, NOISY_ADVICE, judged, judgement, sqnr
from isobit.quantsim.checks.ties import first_apart
from isobit.quantsim.checks.written import SessionCheck, compare_runs
from isobit.quantsim.shown.report import Report
from isobit.quantsim.simulation import Simulation
from isobit.warn import warn

logger = logging.getLogger(__name__)

ONNX = "onnx"
MODEL, ENCODINGS, SUMMARY = "model.qdq.onnx", "encodings.json", "summary.txt"
USUAL = (MODEL, ENCODINGS, SUMMARY)  # what an export writes if nothing else is asked for
#: Share of equal values in float mode below which it is asked where the others come from.
_NEARLY_ALL = 0.99
FLOAT_MODEL, FOREIGN = "model.onnx", "model"


class ExportResult(dict[str, Path]):
    """The written files by what they hold.

    `checks` say how far the QDQ model is from the simulator, one for each kind of session; none where it was not
    checked. `sqnr` is the simulator against the float model by output, and by ``output[part]`` where a Concat makes
    one, in dB. Both are of one batch of calibration. `is_noisy`: both hold noise that the model draws itself.
    ``print`` shows the files, the figures with a judgement in words, and what to try where they are poor.
    """

    def __init__(
        self,
        paths: Mapping[str, Path],
        checks: Sequence[SessionCheck] = (),
        sqnr: Mapping[str, float] | None = None,
        is_noisy: bool = False,
    ) -> None:
        super().__init__(paths)
        self.checks, self.sqnr, self.is_noisy = tuple(checks), dict(sqnr or {}), is_noisy

    def __str__(self) -> str:
        width = max(map(len, self), default=0)
        files = [f"{name:<{width}}  {path}" for name, path in self.items()]
        return "\n".join([*files, *_quality_lines(self.checks, self.sqnr, self.is_noisy)])


def export(
    simulation: Simulation,
    folder: Path,
    formats: str | Sequence[str],
    encodings_formats: Sequence[EncodingsFormat],
    onnx_backend: Callable[[], object],
) -> ExportResult:
    """Write a calibrated simulation in `formats`, its encodings and its summary into `folder`.

    `encodings_formats` are further files of encodings; `onnx_backend` gives the backend that writes ONNX files.
    """
    simulation.require_calibrated()
    simulation.require_numbers()
    model, encodings = simulation.model.inner, simulation.encodings
    files = _files(model, formats)
    further = _further_files(encodings_formats)
    check_writable(folder, [*files.values(), ENCODINGS, SUMMARY, *further.values()])
    _release(simulation)
    with write_folder(folder) as staging:
        notes = []
        for form, file in files.items():
            notes += _write(simulation, form, staging / file, onnx_backend)
        IsobitJson().write(encodings, staging / ENCODINGS)
        check_file(staging / ENCODINGS, IsobitJson(), encodings, None, simulation.plan)
        if further:
            _onnx_writer(onnx_backend).write_float(model, staging / FLOAT_MODEL)
            names = Names.of(simulation.model)
        for encodings_format in encodings_formats:
            path = staging / further[encodings_format.name]
            notes += encodings_format.write(encodings, path, names)
            check_file(path, encodings_format, encodings, names, simulation.plan)
        checks, ratios = _checked(simulation, encodings, staging / files[ONNX] if ONNX in files else None, onnx_backend)
        text = str(Report.of(simulation)) + _quality_text(simulation, checks, ratios, ONNX in files)
        text += "".join(f"\n{note}\n" for note in notes)
        (staging / SUMMARY).write_text(text, "utf-8")
    logger.info("written to %s: %s", folder, ", ".join((*files.values(), ENCODINGS, SUMMARY, *further.values())))
    if failed := [str(check) for check in checks if check.error]:
        warn(f"the written file does not run as the simulator does: {'; '.join(failed)}", FileWarning)
    models = {"model" if form == ONNX else form: folder / file for form, file in files.items()}
    for name, file in further.items():
        models |= {"float_model": folder / FLOAT_MODEL, name: folder / file}
    paths = {**models, "encodings": folder / ENCODINGS, "summary": folder / SUMMARY}
    return ExportResult(paths, checks, ratios, _is_noisy(simulation))


def _is_noisy(simulation: Simulation) -> bool:
    return DIFFERENT_IN_EVERY_RUN in simulation.notes


def _checked(
    simulation: Simulation, encodings: Encodings, file: Path | None, onnx_backend: Callable[[], object]
) -> tuple[list[SessionCheck], dict[str, float]]:
    """The written QDQ model and the float model against the simulator, on the batch that calibration kept."""
    if simulation.reference is None:
        return [], {}
    batch, exact = simulation.reference
    simulated = simulation.model.run(batch)
    _release(simulation)
    ratios = {**sqnr(exact, simulated), **part_sqnr(simulation.graph, exact, simulated)}
    backend = onnx_backend() if file is not None else None
    if file is None or not isinstance(backend, RunsWritten):
        return [], ratios
    runs = backend.run_written(file, batch)
    checks = compare_runs(simulated, runs, simulation.graph, encodings)
    is_far = bool(checks) and not checks[0].error and checks[0].equal < _NEARLY_ALL
    if is_far and isinstance(backend, ShowsRounding) and not _is_noisy(simulation):
        where = first_apart(simulation.model, file, batch, backend, [simulated, runs[0].outputs])
        checks[0] = replace(checks[0], remark=where or "where it begins was not found")
        _release(simulation)
    return checks, ratios


def _release(simulation: Simulation) -> None:
    """Let the model have no more in memory than it is while files of it are made and run."""
    if isinstance(simulation.model.inner, HoldsSessions):
        simulation.model.inner.release_sessions()


def _quality_text(
    simulation: Simulation, checks: Sequence[SessionCheck], ratios: Mapping[str, float], with_file: bool
) -> str:
    """What the summary says of the simulator and of the written file."""
    lines = _quality_lines(checks, ratios, _is_noisy(simulation))
    if with_file and not checks:
        why = "onnxruntime is not installed"
        if simulation.reference is None:
            why = "no batch of calibration is at hand; calibrate with data"
        lines += ["", f"written file against the simulator: not checked, because {why}"]
    return "\n".join(lines) + "\n" if lines else ""


def _quality_lines(checks: Sequence[SessionCheck], ratios: Mapping[str, float], is_noisy: bool) -> list[str]:
    lines = []
    if ratios:
        lines += ["", "simulator against the float model, on one batch of calibration"]
        lines += [f"  {name}: {judged(ratio)}" for name, ratio in ratios.items()]
        if judgement(min(ratios.values())) == "poor":
            lines.append(f"  {NOISY_ADVICE if is_noisy else ADVICE}")
    if checks:
        lines += ["", "written file against the simulator, on one batch of calibration", *(f"  {c}" for c in checks)]
    return lines


def _further_files(formats: Sequence[EncodingsFormat]) -> dict[str, str]:
    """The file name of each further encodings format."""
    if len(formats) == 1:
        return {form.name: FOREIGN + form.suffix for form in formats}
    return {form.name: f"{FOREIGN}.{form.name}{form.suffix}" for form in formats}


def _files(model: BackendModel, formats: str | Sequence[str]) -> dict[str, str]:
    """The file name of each wanted format. Raises OutputError for one that is not known."""
    native = model.native_formats if isinstance(model, NativeExporter) else {}
    known = {ONNX: MODEL, **native}
    wanted = [formats] if isinstance(formats, str) else list(formats)
    if not wanted:
        raise OutputError(f"export needs a format: {', '.join(known)}")
    for form in wanted:
        if form not in known:
            near = did_you_mean(str(form), known)
            raise OutputError(f"no export format {form!r}{near}; this model can be written as {', '.join(known)}")
    return {form: known[form] for form in wanted}


def _write(simulation: Simulation, form: str, path: Path, onnx_backend: Callable[[], object]) -> list[str]:
    model, encodings = simulation.model.inner, simulation.encodings
    if form != ONNX:
        assert isinstance(model, NativeExporter)  # or `_files` would not know the format
        return model.write_native(form, encodings, path)
    writer = _onnx_writer(onnx_backend)
    runs_next = simulation.reference is not None and isinstance(writer, RunsWritten)
    return writer.write_qdq(model, encodings, path, runs_next=runs_next)


def _onnx_writer(onnx_backend: Callable[[], object]) -> QdqWriter:
    writer = onnx_backend()
    if not isinstance(writer, QdqWriter):
        raise PluginError("the plug-in named 'onnx' cannot write QDQ models: reinstall isobit")
    return writer
