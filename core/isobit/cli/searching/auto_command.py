"""`isobit auto`: quantize so that the score falls by so much at most, and say how that was found."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import typer

from isobit.cli import quantize_options as options
from isobit.cli.guard import Debug, remember_written
from isobit.cli.quantize_options import parse_overrides
from isobit.cli.searching import auto_options as own
from isobit.cli.user_data.image_options import ImageOptions

if TYPE_CHECKING:
    from isobit.quantsim.quantsim import QuantSim
    from isobit.search import Attempt


def auto(
    context: typer.Context,
    model: options.Model,
    data: options.Data,
    out: options.Out,
    evaluate: own.Evaluate = None,
    max_drop: own.MaxDrop = 0.01,
    minutes: own.Minutes = None,
    journal: own.JournalFile = None,
    candidate: own.Candidates = None,
    cost: own.Cost = "bits",
    evaluations: own.Evaluations = 12,
    target: options.Target = None,
    weights: options.Weights = None,
    activations: options.Activations = None,
    override: options.Override = None,
    exclude: options.Exclude = None,
    backend: options.Backend = None,
    batch_size: options.BatchSize = 32,
    samples: options.Samples = None,
    ignore_non_finite: options.IgnoreNonFinite = False,
    no_check: options.NoCheck = False,
    image_size: options.ImageSize = None,
    mean: options.Mean = None,
    std: options.Std = None,
    scale: options.Scale = None,
    channels: options.ChannelOrder = None,
    layout: options.AxisOrder = None,
    write_json: own.AutoJson = None,
    report: options.Report = None,
    as_json: options.AsJson = False,
    _debug: Debug = False,
) -> None:
    """Quantize so that the score falls by --max-drop at most: recipes, ranges and formats are tried in turn.

    The folder holds the best at every moment, so that it can be used when the time is over.

    The exit code is 0 also where nothing holds the drop; the first line says so.

    [bold]Examples[/bold]

    isobit auto model.onnx --data calibration.npz -o out/

    isobit auto model.onnx --data c.npz --evaluate test.npz --max-drop 0.005 -o out/

    isobit auto model.onnx --data c.npz --evaluate score.py --minutes 20 --journal j.jsonl -o out/
    """
    from isobit.analysis.analyze import analyze
    from isobit.cli.quantizing.evaluate_file import load_evaluate
    from isobit.cli.terminal import line, print_json
    from isobit.cli.user_data.open_on_data import open_on_data
    from isobit.files import check_writable
    from isobit.html_report import write_page
    from isobit.quantsim.export import USUAL
    from isobit.quantsim.quantize import open_simulator
    from isobit.search import auto_quantize

    check_writable(out, USUAL)
    options.check_there(model)
    images = ImageOptions.of(image_size, mean, std, scale, channels, layout)
    opened = partial(
        open_simulator,
        model,
        target=target,
        weights=weights,
        activations=activations,
        overrides=parse_overrides(override or ()),
        exclude=tuple(exclude or ()),
        backend=backend,
        check=not no_check,
    )
    sim, files = open_on_data(opened, data, images, batch_size=batch_size, samples=samples)
    measure = None
    if evaluate is not None:
        measure = load_evaluate(evaluate, sim.graph, images, batch_size, ignore_non_finite)

    def write(best: QuantSim, attempt: Attempt) -> None:
        best.export(out)
        remember_written(context, out)
        if not as_json:
            line(f"{attempt.name}: {attempt.result}; in {out}")

    with files.named():
        result = auto_quantize(
            sim,
            files.source,
            measure,
            max_drop=max_drop,
            minutes=minutes,
            journal=journal,
            candidates=candidate or None,
            cost=cost,
            evaluations=evaluations,
            batch_size=batch_size,
            ignore_non_finite=ignore_non_finite,
            on_best=write,
        )
        if report is not None:
            what = analyze(result.sim, files.source, batch_size=batch_size, ignore_non_finite=ignore_non_finite)
            about = f"{model.name}, at most {max_drop:g} lower than in float"
            write_page(report, "isobit auto", about, [*result.sections(), *what.sections()])
    if write_json is not None:
        result.to_json(write_json)
    if as_json:
        print_json(result.to_dict())
        return
    for note in files.notes:
        line(note)
    line()
    for text in str(result).splitlines():
        line(text)
    line(f"written to {out}")
    if report is not None:
        line(f"report in {report}")
