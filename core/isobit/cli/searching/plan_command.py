"""`isobit plan`: what quantizing a model would bring, without data."""

from __future__ import annotations

from typing import Annotated

import typer

from isobit.cli import quantize_options as options
from isobit.cli.guard import Debug, remember_written
from isobit.cli.quantize_options import parse_overrides

_SHOWN = 20


def plan(
    context: typer.Context,
    model: options.Model,
    target: options.Target = None,
    weights: options.Weights = None,
    activations: options.Activations = None,
    override: options.Override = None,
    exclude: options.Exclude = None,
    backend: options.Backend = None,
    samples: Annotated[
        int, typer.Option("--samples", metavar="N", min=1, help="Calibration samples that recipes are told for.")
    ] = 256,
    show_all: Annotated[
        bool, typer.Option("--all", metavar="", help=f"List all operations in float, not the first {_SHOWN}.")
    ] = False,
    report: options.Report = None,
    as_json: options.AsJson = False,
    _debug: Debug = False,
) -> None:
    """Say what quantizing would bring: coverage, conversions, size, time, and what recipes take. Needs no data.

    [bold]Examples[/bold]

    isobit plan model.onnx

    isobit plan model.onnx --weights int4 --exclude 'head*'
    """
    from isobit.cli.terminal import capped, line, print_json
    from isobit.forecast import plan as forecast

    options.check_there(model)
    found = forecast(
        model,
        target=target,
        weights=weights,
        activations=activations,
        overrides=parse_overrides(override or ()),
        exclude=tuple(exclude or ()),
        backend=backend,
        samples=samples,
    )
    if report is not None:
        found.to_html(report)
        remember_written(context, report)
    if as_json:
        print_json({"model": str(model), **found.to_dict()})
        return
    line(str(model), style="bold")
    line(str(found))
    told = [node for node in found.nodes if node.runs == "float" and node.why]  # the rest computes no floats
    floats = [f"  {node.name} ({node.op}): {node.why}" for node in told]
    line(f"in float: {len(floats) or 'nothing'}", style="bold")
    for text in capped(floats, 10**9 if show_all else _SHOWN, "  ... and {count} more: --all lists them"):
        line(text)
    if report is not None:
        line(f"report       {report}")
