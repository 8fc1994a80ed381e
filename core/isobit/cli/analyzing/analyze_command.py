"""`isobit analyze`: which tensors and layers lose accuracy, why, and what would repair them."""

from __future__ import annotations

from functools import partial

import typer

from isobit.cli import quantize_options as options
from isobit.cli.analyzing import options as own
from isobit.cli.guard import Debug, remember_written
from isobit.cli.quantize_options import parse_overrides
from isobit.cli.user_data.image_options import ImageOptions


def analyze(
    context: typer.Context,
    model: options.Model,
    data: own.AnalyzedData,
    second: own.SecondData = None,
    analyzed: own.AnalyzedSamples = 16,
    checks: own.Checks = 5,
    measure: own.Measure = None,
    most: own.Most = 8,
    evaluate: own.Evaluate = None,
    target: options.Target = None,
    weights: options.Weights = None,
    activations: options.Activations = None,
    override: options.Override = None,
    exclude: options.Exclude = None,
    recipe: options.Recipe = None,
    backend: options.Backend = None,
    method: options.Method = "auto",
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
    report: options.Report = None,
    as_json: options.AsJson = False,
    _debug: Debug = False,
) -> None:
    """Quantize a model as `isobit quantize` does, and say what hurts, why, and what would help.

    [bold]Examples[/bold]

    isobit analyze model.onnx --data calibration.npz

    isobit analyze model.onnx --data photos/ --target onnxruntime-cpu --checks 10

    isobit analyze model.onnx --data c.npz --measure off --report found.html
    """
    from isobit.analysis import analyze as analyze_simulator
    from isobit.cli.quantizing.evaluate_file import load_evaluate
    from isobit.cli.terminal import line, print_json
    from isobit.cli.user_data.calibration_files import load
    from isobit.cli.user_data.open_on_data import open_on_data
    from isobit.quantsim.quantize import open_simulator, quantize

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
    other = load(second, sim.graph, images, batch_size=batch_size, samples=samples) if second is not None else None
    scored = None
    if evaluate is not None:
        scored = load_evaluate(evaluate, sim.graph, images, batch_size, ignore_non_finite)
    with files.named():
        quantize(
            sim,
            files.source,
            method=method,
            recipe=recipe,
            batch_size=batch_size,
            ignore_non_finite=ignore_non_finite,
        )
        result = analyze_simulator(
            sim,
            files.source,
            scored,
            second=None if other is None else other.source,
            samples=analyzed,
            checks=checks,
            measure=None if measure is None else measure.value,
            batch_size=batch_size,
            ignore_non_finite=ignore_non_finite,
        )
    if report is not None:
        result.to_html(report)
        remember_written(context, report)
    if as_json:
        print_json(result.to_dict())
        return
    for note in files.notes:
        line(note)
    for text in result.text(most).splitlines():
        line(text)
    if report is not None:
        line(f"report     {report}")
