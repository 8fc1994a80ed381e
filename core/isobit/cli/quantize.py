"""`isobit quantize`: from a trained model and data to deployable files, and what they cost in accuracy."""

from __future__ import annotations

import typer

from isobit.cli import quantize_options as options
from isobit.cli.guard import Debug, remember_written
from isobit.cli.quantize_options import Job, parse_overrides
from isobit.cli.user_data.image_options import ImageOptions


def quantize(
    context: typer.Context,
    model: options.Model,
    data: options.Data,
    out: options.Out,
    evaluate: options.Evaluate = None,
    target: options.Target = None,
    weights: options.Weights = None,
    activations: options.Activations = None,
    override: options.Override = None,
    exclude: options.Exclude = None,
    no_fold: options.NoFold = False,
    recipe: options.Recipe = None,
    _explain: options.Explain = False,
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
    latency_batch: options.LatencyBatch = 8,
    threads: options.Threads = None,
    report: options.Report = None,
    save_simulator: options.SaveSimulator = None,
    as_json: options.AsJson = False,
    _debug: Debug = False,
) -> None:
    """Quantize a trained model and write the files that a runtime loads.

    Follows a --recipe, calibrates on --data and measures on --evaluate.

    Writes model.qdq.onnx, encodings.json and summary.txt, all or nothing.

    [bold]Examples[/bold]

    isobit quantize model.onnx --data calibration.npz --evaluate test.npz -o out/

    isobit quantize model.onnx --data photos/ --target onnxruntime-cpu-transformer -o out/

    isobit quantize model.onnx --data c.npz --recipe ptq -o out/

    isobit quantize model.onnx --data c.npz --weights int4 --exclude Softmax -o out/

    isobit quantize model.onnx --data c.npz --override 'head.*=int16' -o out/

    isobit quantize model.onnx --data c.npz --save-simulator saved.isobit -o out/
    """
    images = ImageOptions.of(image_size, mean, std, scale, channels, layout)
    job = Job(
        model, data, out, evaluate, target, weights, activations, parse_overrides(override or ()), tuple(exclude or ()),
        not no_fold, recipe, backend, method, batch_size, samples, ignore_non_finite, not no_check, images,
        latency_batch, threads, report,
    )  # fmt: skip
    from isobit.cli.quantizing.outcome import print_outcome
    from isobit.cli.quantizing.quantize_run import Run

    run = Run(job, quiet=as_json)
    run.prepare()
    run.quantize()
    run.write()
    remember_written(context, job.out)
    if save_simulator is not None:
        run.sim.save(save_simulator)
        run.paths["simulator"] = save_simulator
    outcome = run.measure_files()
    if report is not None:
        run.report(outcome, report)
    print_outcome(outcome, as_json)
