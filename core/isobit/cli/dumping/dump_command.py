"""`isobit dump`: the values of all tensors of a model on some samples, as a file."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from isobit.cli import quantize_options as options
from isobit.cli.guard import Debug, remember_written, say_report, write_report
from isobit.cli.user_data.image_options import ImageOptions


def dump(
    context: typer.Context,
    model: options.Model,
    data: options.Data,
    out: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", show_default=False, help="The .npz file to write.")
    ],
    simulator: Annotated[
        Path | None,
        typer.Option(
            "--simulator",
            metavar="FILE",
            help="A saved simulator of the model: values as its quantizers make them. Without it, the model as it is.",
        ),
    ] = None,
    in_float: Annotated[
        bool,
        typer.Option(
            "--float",
            metavar="",
            help="Its layers in float: the simulator's quantizers are off.",
        ),
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="PATTERN", help="Tensors, or the nodes that compute them. Repeatable."),
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", metavar="N", min=1, help="How many samples, from the start of the data.")
    ] = 8,
    backend: options.Backend = None,
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
    """Write what every layer computes on some samples: arrays by name, with their ONNX names, axes and steps.

    [bold]Examples[/bold]

    isobit dump model.onnx --simulator saved.isobit --data calibration.npz -o simulated.npz

    isobit dump model.onnx --simulator saved.isobit --float --data calibration.npz -o float.npz

    isobit diff float.npz simulated.npz
    """
    from isobit.cli.terminal import line, print_json, warn
    from isobit.cli.user_data.calibration_files import load as load_data
    from isobit.cli.user_data.open_on_data import first_batch, open_on_data
    from isobit.layer_dumps import dump as dump_layers
    from isobit.quantsim.load import load
    from isobit.quantsim.quantsim import QuantSim

    options.check_there(model)
    images = ImageOptions.of(image_size, mean, std, scale, channels, layout)
    if simulator is None:
        sim, files = open_on_data(
            partial(QuantSim, model, backend=backend), data, images, batch_size=samples, samples=samples
        )
    else:
        sim = load(simulator, model, backend=backend)
        files = load_data(data, sim.graph, images, batch_size=samples, samples=samples)
    batch = first_batch(files, sim.graph, samples)
    found = dump_layers(sim, batch, names=only or None, simulated=simulator is not None and not in_float)
    found.save(out)
    remember_written(context, out)
    write_report(context, report, f"{model.name}, {out.name}", found.sections())
    size = sum(tensor.values.nbytes for tensor in found.tensors.values())
    if as_json:
        tensors = {
            name: {"onnx": tensor.onnx, "shape": list(tensor.values.shape)} for name, tensor in found.tensors.items()
        }
        print_json({"file": str(out), "simulated": found.simulated, "tensors": tensors, "left_out": found.left_out})
        return
    for note in files.notes:
        line(note)
    for name, why in found.left_out.items():
        warn(f"{name}: {why}, so it is not in the file")
    kind = "as quantizers make them" if found.simulated else "in float"
    line(f"{len(found.tensors)} tensors {kind}, {size / 1e6:.1f} MB: {out}")
    say_report(report)
