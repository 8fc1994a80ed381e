"""`isobit compress`: a trained model made smaller under a budget, with a report and a recipe."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from isobit.cli import quantize_options as options
from isobit.cli.complete import compression_names
from isobit.cli.guard import Debug, remember_written
from isobit.cli.user_data.image_options import ImageOptions
from isobit.defaults import DEFAULT_TARGET

_SIZES = "Sizes"

Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help="A few hundred typical inputs, as for `isobit quantize`: errors of outputs decide, not those of weights.",
    ),
]
EvaluationData = Annotated[
    Path | None,
    typer.Option(
        "--evaluate",
        metavar="PATH",
        help="What choices are judged by: an .npz with an array 'label' or 'labels' (top-1 accuracy of the first "
        "output; label_NAME for output NAME), or a .py with a function evaluate(model).",
    ),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        metavar="NAME",
        rich_help_panel=_SIZES,
        help="What is done to layers: channel-pruning, spatial-svd, weight-svd, tucker-2, or what a plug-in adds; the "
        "last three unless said. Repeatable.",
        autocompletion=compression_names,
    ),
]
Keep = Annotated[
    float, typer.Option("--keep", metavar="SHARE", rich_help_panel=_SIZES, help="The share of the cost that is kept.")
]
CostUnit = Annotated[
    str,
    typer.Option(
        "--cost",
        metavar="UNIT",
        rich_help_panel=_SIZES,
        help="macs, parameters, bytes, activations, or milliseconds by the table of the target.",
    ),
]
Select = Annotated[
    str, typer.Option("--select", metavar="NAME", rich_help_panel=_SIZES, help="integer-program or greedy.")
]
Multiple = Annotated[
    int, typer.Option("--multiple", metavar="N", min=1, rich_help_panel=_SIZES, help="Sizes are multiples of this.")
]
Ratio = Annotated[
    list[str] | None,
    typer.Option(
        "--ratio",
        metavar="NAME=SHARE",
        rich_help_panel=_SIZES,
        help="The share of its own cost that a layer keeps; * and ? match. Repeatable.",
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="PATTERN",
        rich_help_panel=_SIZES,
        help="Layers (by name, * and ? match) or op types that stay whole. Repeatable.",
    ),
]
Trials = Annotated[
    int,
    typer.Option(
        "--trials", metavar="N", min=1, rich_help_panel=_SIZES, help="Choices of sizes that are judged at most."
    ),
]
Recipe = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        metavar="FILE",
        rich_help_panel=_SIZES,
        help="Apply the recipe of an earlier run, in place of sizes.",
    ),
]


def compress(
    context: typer.Context,
    model: options.Model,
    out: options.Out,
    data: Data = None,
    evaluate: EvaluationData = None,
    method: Methods = None,
    keep: Keep = 0.5,
    cost: CostUnit = "macs",
    select: Select = "integer-program",
    multiple: Multiple = 1,
    ratio: Ratio = None,
    exclude: Exclude = None,
    trials: Trials = 3,
    recipe: Recipe = None,
    target: options.Target = None,
    backend: options.Backend = None,
    batch_size: options.BatchSize = 32,
    samples: options.Samples = None,
    ignore_non_finite: options.IgnoreNonFinite = False,
    image_size: options.ImageSize = None,
    mean: options.Mean = None,
    std: options.Std = None,
    scale: options.Scale = None,
    channels: options.ChannelOrder = None,
    layout: options.AxisOrder = None,
    report: options.Report = None,
    as_json: options.AsJson = False,
    _debug: Debug = False,
) -> None:
    """Make a trained model smaller, layer by layer, under one budget.

    Writes model.onnx, recipe.toml (the sizes, to be done again), report.json and summary.txt, all or nothing.

    [bold]Examples[/bold]

    isobit compress model.onnx --data calibration.npz --keep 0.5 -o small/

    isobit compress model.onnx --data c.npz --evaluate test.npz --cost parameters --multiple 8 -o small/

    isobit compress model.onnx --data c.npz --method spatial-svd --exclude 'head*' --ratio 'conv1=0.8' -o small/
    """
    from isobit.cli.quantizing.evaluate_file import load_evaluate
    from isobit.cli.terminal import line, print_json
    from isobit.cli.user_data.open_on_data import open_on_data
    from isobit.compression.compress import DEFAULT_METHOD, FILES
    from isobit.compression.compress import compress as compress_model
    from isobit.files import check_writable
    from isobit.quantsim.quantsim import QuantSim

    options.check_there(model)
    check_writable(out, FILES.values())
    images = ImageOptions.of(image_size, mean, std, scale, channels, layout)
    opened = partial(QuantSim, model, target=target or DEFAULT_TARGET, backend=backend)
    if data is None:
        sim, files = opened(), None
    else:
        sim, files = open_on_data(opened, data, images, batch_size=batch_size, samples=samples)
    judge = None if evaluate is None else load_evaluate(evaluate, sim.graph, images, batch_size, ignore_non_finite)
    with nullcontext() if files is None else files.named():
        result = compress_model(
            sim,
            None if files is None else files.source,
            judge,
            method=method or DEFAULT_METHOD,
            keep=keep,
            cost=cost,
            select=select,
            multiple=multiple,
            ratios=parse_ratios(ratio or ()),
            exclude=tuple(exclude or ()),
            trials=trials,
            recipe=recipe,
            target=sim.target,
            batch_size=batch_size,
            ignore_non_finite=ignore_non_finite,
        )
    paths = result.export(out)
    if report is not None:
        result.report.to_html(report)
        paths = {**paths, "html": report}
    remember_written(context, out)
    if as_json:
        print_json({**result.report.to_dict(), "files": {what: str(path) for what, path in paths.items()}})
        return
    for note in () if files is None else files.notes:
        line(note)
    for text in result.report.text().splitlines():
        line(text)
    for what, path in paths.items():
        line(f"{what:<9}{path}")


def parse_ratios(texts: list[str] | tuple[str, ...]) -> dict[str, float]:
    """``NAME=SHARE`` texts. Raises typer.BadParameter."""
    ratios = {}
    for text in texts:
        name, _, share = text.rpartition("=")
        try:
            ratios[name.strip()] = float(share)
        except ValueError:
            raise typer.BadParameter(f"{text!r}: write NAME=SHARE, as conv1=0.5", param_hint="--ratio") from None
        if not name.strip():
            raise typer.BadParameter(f"{text!r}: write NAME=SHARE, as conv1=0.5", param_hint="--ratio")
    return ratios
