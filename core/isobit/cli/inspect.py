"""`isobit inspect`: what is in a model or in a file of isobit, whichever it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isobit.cli.complete import backend_names, target_names
from isobit.cli.guard import Debug, say_report, write_report
from isobit.cli.quantize_options import Report, check_there
from isobit.cli.terminal import print_json
from isobit.defaults import DEFAULT_TARGET

if TYPE_CHECKING:
    from isobit.cli.inspecting.finding import Finding

_SHOWN = 20


def inspect(
    context: typer.Context,
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="A model, float or quantized, a saved simulator, encodings, or statistics.",
            show_default=False,
        ),
    ],
    target: Annotated[
        str,
        typer.Option(
            "--target",
            metavar="NAME",
            help="Say what this target would quantize of a float model.",
            autocompletion=target_names,
        ),
    ] = DEFAULT_TARGET,
    backend: Annotated[
        str | None,
        typer.Option(
            "--backend", metavar="NAME", help="The backend that opens the model.", autocompletion=backend_names
        ),
    ] = None,
    no_fold: Annotated[
        bool, typer.Option("--no-fold", metavar="", help="Plan without folding batch norms first.")
    ] = False,
    costs: Annotated[
        bool,
        typer.Option(
            "--costs", metavar="", help="Say what each layer of a model costs: multiply-accumulates, parameters, ..."
        ),
    ] = False,
    report: Report = None,
    show_all: Annotated[bool, typer.Option("--all", metavar="", help=f"List all, not the first {_SHOWN}.")] = False,
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="Print JSON.")] = False,
    _debug: Debug = False,
) -> None:
    """Show what is in a file.

    Of a float model: inputs, outputs, operations, and what a target would quantize.

    Of a QDQ model, an encodings file and a saved simulator: its encodings. Of statistics: the ranges that were seen.

    [bold]Examples[/bold]

    isobit inspect model.onnx --target onnxruntime-cpu

    isobit inspect out/model.qdq.onnx --all

    isobit inspect model.onnx --costs
    """
    check_there(path)
    finding = _costs(path, target, backend) if costs else _find(path, target, backend, not no_fold)
    if report is not None:
        write_report(context, report, path.name, finding.sections())
    if as_json:
        print_json({"path": str(path), **finding.data()})
    else:
        finding.show(10**9 if show_all else _SHOWN)
        say_report(report)


def _costs(path: Path, target: str, backend: str | None) -> Finding:
    """What the layers of a model cost."""
    from isobit.cli.compressing.cost_table import FoundCosts

    return FoundCosts.read(path, target, backend)


def _find(path: Path, target: str, backend: str | None, fold: bool) -> Finding:
    """What a file holds, by its content, and by its ending where that says it."""
    from isobit.backend.foreign_files import advice
    from isobit.cli.inspecting.encodings_table import FoundEncodings
    from isobit.cli.inspecting.model_summary import FoundModel
    from isobit.cli.inspecting.saved_simulator import FoundSimulator
    from isobit.cli.inspecting.statistics_table import FoundStatistics
    from isobit.errors import ModelError
    from isobit.files import is_file
    from isobit.quantsim.save_file import is_saved

    if is_file(path) and is_saved(path):
        return FoundSimulator.read(path)
    if path.suffix.lower() == ".npz":
        return FoundStatistics.read(path)
    of_models, of_formats = _suffixes()
    if path.suffix.lower() in of_formats - of_models:
        return FoundEncodings.read(path)
    if backend is None and is_file(path) and path.suffix.lower() not in of_models | of_formats and not advice(path):
        raise ModelError(
            f"{path}: not a file that can be inspected by its ending; known endings are "
            f"{', '.join(sorted(of_models | of_formats | {'.npz'}))}, and a saved simulator may have any"
        )
    try:
        return FoundModel.read(path, target, backend, fold)
    except ModelError:
        if path.suffix.lower() not in of_formats:
            raise
        quantized = _encodings_or_none(path)
        if quantized is None:
            raise
        return quantized


def _suffixes() -> tuple[set[str], set[str]]:
    """The endings of models that a backend opens, and those of files of encodings."""
    from isobit.plugins import registry

    models = {suffix for backend in registry().backends().values() for suffix in backend.suffixes}
    return models, {form.suffix for form in registry().formats().values()}


def _encodings_or_none(path: Path) -> Finding | None:
    """The encodings of a quantized model; None where it holds none, or cannot be read."""
    from isobit.cli.inspecting.encodings_table import FoundEncodings
    from isobit.errors import IsobitError

    try:
        found = FoundEncodings.read(path)
    except IsobitError:
        return None
    return found if found.encodings else None
