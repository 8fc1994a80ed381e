"""`isobit transfer`: encodings of one model for another that computes the same, in whatever framework."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isobit.cli.guard import Debug, remember_written, say_report, write_report
from isobit.cli.quantize_options import Report
from isobit.cli.terminal import capped, line, print_json, warn

if TYPE_CHECKING:
    from isobit.encoding_transfer.report import Transfer

_SHOWN = 20


def transfer(
    context: typer.Context,
    encodings: Annotated[
        Path, typer.Argument(metavar="ENCODINGS", help="An encodings.json of the source.", show_default=False)
    ],
    source: Annotated[
        Path, typer.Option("--source", metavar="MODEL", help="The model that they belong to.", show_default=False)
    ],
    target: Annotated[
        Path, typer.Option("--target", metavar="MODEL", help="The model to find them a place in.", show_default=False)
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="PATH", help="The encodings file to write.", show_default=False)
    ],
    partial: Annotated[
        bool, typer.Option("--partial", metavar="", help="Write also when some found no place.")
    ] = False,
    report: Report = None,
    show_all: Annotated[bool, typer.Option("--all", metavar="", help=f"List all, not the first {_SHOWN}.")] = False,
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="Print JSON.")] = False,
    _debug: Debug = False,
) -> None:
    """Carry encodings over to another export of the same network, by structure and by what its weights hold.

    Names do not count. What has no counterpart, or several that nothing tells apart, is listed with the reason.

    Nothing is written then but with --partial.

    [bold]Example[/bold]

    isobit transfer out/encodings.json --source model.keras --target exported.onnx -o exported.json
    """
    from isobit.encoding_transfer import transfer as carry
    from isobit.errors import EncodingError
    from isobit.formats.isobit_json import IsobitJson

    result = carry(IsobitJson().read(encodings), source, target)
    if result.complete or partial:
        IsobitJson().write(result.encodings, out)
        remember_written(context, out)
    if report is not None:
        write_report(context, report, f"{source.name} to {target.name}", result.sections())
    if as_json:
        print_json({"out": str(out), **result.as_data()})
    else:
        _print(result, out, 10**9 if show_all else _SHOWN)
        say_report(report)
    if not result.complete and not partial:
        raise EncodingError(
            f"{len(result.unmapped)} of the encodings in {encodings} found no place in {target}: nothing was written; "
            "--partial writes the others"
        )


def _print(result: Transfer, out: Path, cap: int) -> None:
    line(f"{len(result.encodings)} encodings for {out}", style="bold")
    for note in result.notes:
        warn(note)
    lost = [f"  {site}: {reason}" for site, reason in result.unmapped.items()]
    if lost:
        line(f"without a place: {len(lost)}", style="bold")
    for text in capped(lost, cap, "  ... and {count} more: --all lists them"):
        line(text)
