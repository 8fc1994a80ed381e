"""`isobit plan`: what quantizing a model would bring, without data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isobit.cli import quantize_options as options
from isobit.cli.guard import Debug, remember_written
from isobit.cli.quantize_options import parse_overrides

if TYPE_CHECKING:
    from isobit.cli.user_data.image_options import ImageOptions
    from isobit.data import Batch

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
    example: Annotated[
        Path | None,
        typer.Option(
            "--example",
            metavar="PATH",
            help="Data, as --data of isobit quantize: its first sample tells sizes that the model leaves open, such as "
            "lengths, and which branches run.",
        ),
    ] = None,
    image_size: options.ImageSize = None,
    channels: options.ChannelOrder = None,
    layout: options.AxisOrder = None,
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

    isobit plan encoder.onnx --example sentences.npz
    """
    from isobit.cli.terminal import capped, line, print_json
    from isobit.cli.user_data.image_options import ImageOptions
    from isobit.forecast import plan as forecast

    options.check_there(model)
    images = ImageOptions.of(image_size, None, None, None, channels, layout)
    found = forecast(
        model,
        None if example is None else _first_batch(model, example, images, backend),
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


def _first_batch(model: Path, data: Path, images: ImageOptions, backend: str | None) -> Batch:
    """The first sample of data at a path, or as many as the model takes at once, checked against the model's inputs."""
    from isobit.cli.user_data.calibration_files import load
    from isobit.cli.user_data.file_batches import fixed_batch
    from isobit.cli.user_data.open_on_data import first_batch
    from isobit.quantsim.quantsim import QuantSim

    graph = QuantSim(model, backend=backend).graph
    one = fixed_batch(graph) or 1
    files = load(data, graph, images, batch_size=one, samples=one)
    return first_batch(files, graph, one)
