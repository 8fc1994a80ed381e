"""`isobit convert`: encodings from one format to another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isobit.cli.complete import backend_names, format_names
from isobit.cli.diff import encodings_of, names_of
from isobit.cli.guard import Debug, remember_written, say_report, write_report
from isobit.cli.quantize_options import Report
from isobit.cli.terminal import line, print_json, warn


def convert(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="IN", help="Encodings, a saved simulator or a QDQ model.")],
    destination: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write.")],
    format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="NAME",
            help="isobit, aimet-0.6.1, aimet-1.0.0, aimet-2.0.0, onnx-qdq ...",
            autocompletion=format_names,
        ),
    ],
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", metavar="MODEL", help="The float model: names and axes of other tools are its ONNX file's."
        ),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            "--backend", metavar="NAME", help="The backend that opens the model.", autocompletion=backend_names
        ),
    ] = None,
    no_fold: Annotated[
        bool, typer.Option("--no-fold", metavar="", help="Do not fold batch norms of the model.")
    ] = False,
    report: Report = None,
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="Print JSON.")] = False,
    _debug: Debug = False,
) -> None:
    """Write encodings in another format. What the format cannot hold is an error or a warning.

    [bold]Example[/bold]

    isobit convert out/encodings.json model.encodings --format aimet-1.0.0 --model model.onnx
    """
    from isobit.errors import EncodingError
    from isobit.plugins import registry

    chosen = registry().format(format)
    names = None if model is None else names_of(model, backend, not no_fold)
    encodings = encodings_of(source, names)
    if encodings.unmapped:
        shown = ", ".join(list(encodings.unmapped)[:5])
        raise EncodingError(f"{source}: the model has no {shown}: is it the model that the file belongs to?")
    notes = [*encodings.notes, *chosen.write(encodings, destination, names)]
    remember_written(context, destination)
    if report is not None:
        from isobit.html_report import encodings_table
        from isobit.html_report import notes as lines

        told = lines("Notes", list(dict.fromkeys(notes)) or ["The format holds all of it."])
        about = f"{source.name} to {destination.name}, format {format}"
        write_report(context, report, about, [encodings_table(encodings), told])
    if as_json:
        counts = {"encodings": len(encodings), "notes": list(dict.fromkeys(notes))}
        print_json({"in": str(source), "out": str(destination), "format": format, **counts})
        return
    for note in dict.fromkeys(notes):
        warn(note)
    line(f"{destination}: {len(encodings)} encodings in format {format}")
    say_report(report)
