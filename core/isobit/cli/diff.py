"""`isobit diff`: what differs between two encodings files, saved simulators, QDQ models or layer dumps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isobit.cli.complete import backend_names
from isobit.cli.guard import Debug, errors_exit_with
from isobit.cli.quantize_options import Report, check_there
from isobit.cli.terminal import line, print_json, table, warn

if TYPE_CHECKING:
    from isobit.encodings.compare import Difference
    from isobit.encodings.encoding import Encodings
    from isobit.formats.names import Names

SAME, DIFFERENT, FAILED = 0, 1, 2

_SHOWN = 30

_COLUMNS = ("site", "name", "what", "A", "B", "steps", "scales")


def diff(
    context: typer.Context,
    a: Annotated[Path, typer.Argument(metavar="A", help="Encodings, a saved simulator, a QDQ model or a layer dump.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="What to compare it with.")],
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="MODEL", help="The float model, to match names of different tools."),
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
    show_all: Annotated[bool, typer.Option("--all", metavar="", help=f"List all, not the first {_SHOWN}.")] = False,
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="Print JSON.")] = False,
    _debug: Debug = False,
) -> None:
    """Show which encodings, or layers, differ, and by how many steps. Exit code 0: none, 1: some, 2: an error.

    [bold]Examples[/bold]

    isobit diff before/encodings.json after/encodings.json

    isobit diff out/model.qdq.onnx aimet.encodings --model model.onnx

    isobit diff float.npz simulated.npz
    """
    from isobit.encodings.compare import compare
    from isobit.layer_dumps.layer_dump import is_dump

    errors_exit_with(context, FAILED)
    cap = 10**9 if show_all else _SHOWN
    if is_dump(a) or is_dump(b):
        from isobit.cli.dumping.dump_differences import show_dump_differences

        raise typer.Exit(DIFFERENT if show_dump_differences(a, b, cap, as_json=as_json, report=report) else SAME)
    if model is not None:
        check_there(model)
    names = None if model is None else names_of(model, backend, not no_fold)
    first, second = encodings_of(a, names), encodings_of(b, names)
    for encodings, path in ((first, a), (second, b)):
        for note in encodings.notes:
            warn(f"{path}: {note}")
        if encodings.unmapped:
            warn(f"{path}: the model has no {', '.join(encodings.unmapped)}")
    differences = compare(first, second)
    if report is not None:
        _write_report(report, (a, b), (len(first), len(second)), differences)
    if as_json:
        counts = {"a": len(first), "b": len(second), "different": len(differences)}
        print_json({"a": str(a), "b": str(b), "counts": counts, "differences": [d.record() for d in differences]})
    else:
        _show(differences, len(first), len(second), cap)
    raise typer.Exit(DIFFERENT if differences else SAME)


def encodings_of(path: Path, names: Names | None) -> Encodings:
    """The encodings in a file of any format, or in a saved simulator."""
    from isobit.quantsim.encodings_files import read_encodings
    from isobit.quantsim.save_file import encodings_in, is_saved

    return encodings_in(path) if is_saved(path) else read_encodings(path, names)


def names_of(model: Path, backend: str | None, fold: bool) -> Names:
    """The names of a model file."""
    from isobit.formats.names import Names
    from isobit.quantsim.quantsim import QuantSim
    from isobit.techniques.fold_batch_norms import FoldBatchNorms

    sim = QuantSim(model, backend=backend)
    if fold:
        sim.apply(FoldBatchNorms())
    return Names.of(sim)


def _rows(differences: list[Difference]) -> list[tuple[str, ...]]:
    from isobit.graph.sites import site_key

    return [
        (
            site_key(d.site)[0],
            str(d.site),
            d.what,
            d.a,
            d.b,
            "" if d.steps is None else f"{d.steps:.3g}",
            str(d.channels or ""),
        )
        for d in differences
    ]


def _write_report(
    report: Path, paths: tuple[Path, Path], counts: tuple[int, int], differences: list[Difference]
) -> None:
    from isobit.cli.dumping.dump_differences import told_apart
    from isobit.html_report import Cell, Column, notes, write_page
    from isobit.html_report import table as html_table

    columns = [Column(name, "name" if name == "name" else "") for name in _COLUMNS[:-2]]
    columns += [Column(name, "number") for name in _COLUMNS[-2:]]
    rows: list[list[Cell]] = [
        [*row[:-2], (row[-2], found.steps), (row[-1], float(found.channels))]
        for row, found in zip(_rows(differences), differences, strict=True)
    ]
    text = f"A, {paths[0]}, has {counts[0]} encodings; B, {paths[1]}, has {counts[1]}; {len(differences)} differ."
    found = html_table("What differs", columns, rows, filter="Filter by name, format", none="Nothing.")
    write_page(report, "isobit diff", " and ".join(told_apart(*paths)), [notes("", [text]), found])


def _show(differences: list[Difference], first: int, second: int, cap: int) -> None:
    if not differences:
        line(f"the same: {first} encodings")
        return
    line(f"{len(differences)} differences (A has {first} encodings, B {second})", style="bold")
    table(_COLUMNS, _rows(differences[:cap]), right=("steps", "scales"))
    if len(differences) > cap:
        line(f"... and {len(differences) - cap} more: --all lists them")
