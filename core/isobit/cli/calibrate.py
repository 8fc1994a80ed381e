"""`isobit calibrate`: statistics of a model from data or from files, and the encodings that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING

import typer

from isobit.cli import quantize_options as options
from isobit.cli.guard import Debug, remember_written, write_report
from isobit.cli.quantize_options import parse_overrides
from isobit.cli.user_data.image_options import ImageOptions

if TYPE_CHECKING:
    from pathlib import Path

    from isobit.cli.user_data.data_files import DataFiles
    from isobit.quantsim.quantsim import QuantSim


def calibrate(
    context: typer.Context,
    model: options.Model,
    more: options.FurtherStatistics = None,
    statistics: options.Statistics = None,
    example: options.StatisticsExample = None,
    data: options.CalibrationData = None,
    out: options.CalibratedOut = None,
    write_statistics: options.WriteStatistics = None,
    resume: options.Resume = None,
    processes: options.Processes = None,
    target: options.Target = None,
    weights: options.Weights = None,
    activations: options.Activations = None,
    override: options.Override = None,
    exclude: options.Exclude = None,
    no_fold: options.NoFold = False,
    backend: options.Backend = None,
    method: options.Method = "minmax",
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
    """Collect the statistics of a model over data, or add up those of several runs, and set the quantizers from them.

    One pass over the data serves every method: keep its statistics, and try another one without the data.

    [bold]Examples[/bold]

    isobit calibrate model.onnx --data part1/ --write-statistics a.npz

    isobit calibrate model.onnx --statistics a.npz b.npz --method entropy -o out/

    isobit calibrate model.onnx --data photos/ --resume so-far.npz --processes 4 -o out/
    """
    files = [*(statistics or ()), *(more or ())]
    if bool(files) == (data is not None):
        raise typer.BadParameter("give either --data or --statistics", param_hint="'--data' / '--statistics'")
    if more and not statistics:
        raise typer.BadParameter(f"unexpected {more[0]}: statistics follow --statistics", param_hint="'MODEL'")
    if data is not None and example is not None:
        raise typer.BadParameter("it goes with --statistics: --data is an example itself", param_hint="'--example'")
    if data is None and (resume is not None or processes is not None):
        raise typer.BadParameter("they are about --data", param_hint="'--resume' / '--processes'")
    if out is None and write_statistics is None and resume is None:
        raise typer.BadParameter("say what to write: -o FOLDER, or --write-statistics FILE", param_hint="'-o'")
    from isobit.cli.user_data.open_on_data import open_on_data
    from isobit.files import check_file_writable, check_writable
    from isobit.quantsim.export import USUAL
    from isobit.quantsim.quantize import open_simulator
    from isobit.quantsim.shown.simulator_sections import simulator_sections
    from isobit.techniques.fold_batch_norms import FoldBatchNorms

    if out is not None:
        check_writable(out, USUAL)
    if write_statistics is not None:
        check_file_writable(write_statistics)
    _check(model, method)
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
    images = ImageOptions.of(image_size, mean, std, scale, channels, layout)
    taken = data or example
    given = None
    if taken is None:
        sim = opened()
    else:
        sim, given = open_on_data(opened, taken, images, batch_size=batch_size, samples=samples)
    if not no_fold:
        sim.apply(FoldBatchNorms())
    read: list[str] = []
    if data is None or given is None:
        _take_statistics(sim, files)
        sim.recalibrate(method)
    else:
        read = given.notes
        _observe(sim, given, method, batch_size, ignore_non_finite, resume, processes)
    if write_statistics is not None:
        sim.save_statistics(write_statistics)
        remember_written(context, write_statistics)
    paths = {} if out is None else sim.export(out)
    if out is not None:
        remember_written(context, out)
    if report is not None:
        about = f"{model.name}, target {sim.target.name}, calibration {sim.calibration}"
        write_report(context, report, about, simulator_sections(sim.simulation))
    further = {"statistics": write_statistics, "report": report}
    written = {**{label: path for label, path in further.items() if path is not None}, **paths}
    if as_json:
        _print_json(sim, written, read)
    else:
        _report(sim, written, read)


def _check(model: Path, method: str) -> None:
    from isobit.calibration.scheme import parse_calibrator
    from isobit.plugins import registry

    parse_calibrator(method, registry().calibrators())
    options.check_there(model)


def _take_statistics(sim: QuantSim, files: Sequence[Path]) -> None:
    from isobit.cli.user_data.open_on_data import has_bodies
    from isobit.errors import DataError

    try:
        sim.load_statistics(*files)
    except DataError as error:
        if not has_bodies(sim.graph):
            raise
        raise DataError(
            f"{error}. The model has an If or a loop: where the data of the statistics decided which branch runs, "
            "pass some of it with --example"
        ) from error


def _observe(
    sim: QuantSim,
    files: DataFiles,
    method: str,
    batch_size: int,
    ignore_non_finite: bool,
    resume: Path | None,
    processes: int | None,
) -> None:
    """One pass over the data."""
    executor = None
    if processes is not None:
        executor = partial(ProcessPoolExecutor, processes, mp_context=get_context("spawn"))
    with files.named():
        sim.calibrate(
            files.source,
            method,
            batch_size=batch_size,
            ignore_non_finite=ignore_non_finite,
            executor=executor,
            resume=resume,
        )


def _print_json(sim: QuantSim, paths: Mapping[str, Path], read: Sequence[str]) -> None:
    from dataclasses import asdict

    from isobit.cli.terminal import print_json

    print_json(
        {
            "tensors": len(sim.statistics),
            "batches": sim.statistics.batches,
            "calibration": str(sim.calibration),
            "coverage": asdict(sim.report.coverage),
            "files": dict(paths),
            "notes": [*read, *sim.report.notes],
        }
    )


def _report(sim: QuantSim, paths: Mapping[str, Path], read: Sequence[str]) -> None:
    from isobit.cli.terminal import line

    for note in read:
        line(note)
    line(f"{len(sim.statistics)} tensors over {sim.statistics.batches} batches, calibration {sim.calibration}")
    line(f"coverage: {sim.report.coverage}")
    for label, path in paths.items():
        line(f"{label:<10} {path}")
    for note in sim.report.notes:
        line(f"note: {note}")
