"""The options of `isobit quantize`, and reading those that are written in a small language of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from isobit.cli.complete import backend_names, number_formats, recipe_names, scheme_names, target_names
from isobit.cli.user_data.image_options import ImageOptions

_FORMATS, _DATA, _IMAGES, _MEASURE = "Formats", "Data", "Images", "Measuring"


class Channels(StrEnum):
    """Order of an image's channels."""

    rgb = "rgb"
    bgr = "bgr"
    gray = "gray"


class Layout(StrEnum):
    """Order of an image batch's axes."""

    nchw = "nchw"
    nhwc = "nhwc"


def check_there(path: Path) -> None:
    """Raise ModelError where there is no such file or folder, before anything else is done."""
    from isobit.errors import ModelError
    from isobit.files import is_there

    if not is_there(path):
        raise ModelError(f"{path}: no such file")


def check_file(context: typer.Context, path: Path | None) -> Path | None:
    """Raise OutputError where a file could not be written, before the work."""
    from isobit.files import check_file_writable

    if path is not None and not context.resilient_parsing:
        check_file_writable(path)
    return path


Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="The trained float model, for example model.onnx.",
        show_default=False,
    ),
]
Report = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE",
        help="Write what was found as one HTML file, which needs no network.",
        callback=check_file,
    ),
]
SaveSimulator = Annotated[
    Path | None,
    typer.Option(
        "--save-simulator",
        metavar="FILE",
        help="Write the simulator too, for `isobit dump --simulator` and isobit.load.",
        callback=check_file,
    ),
]
Data = Annotated[
    Path,
    typer.Option(
        "--data",
        metavar="PATH",
        show_default=False,
        help="Calibration data, a few hundred typical inputs: .npz with an array for each input name, .npy, "
        "a folder of them (one file a sample or a batch), an image, or a folder of images.",
    ),
]
Out = Annotated[
    Path, typer.Option("--output", "-o", metavar="FOLDER", show_default=False, help="Where the files are written.")
]
Evaluate = Annotated[
    Path | None,
    typer.Option(
        "--evaluate",
        metavar="PATH",
        help="Data to measure on. With an array 'label' or 'labels' in the .npz: top-1 accuracy of the first "
        "output; label_NAME for output NAME; without any, "
        "agreement with the float model. SQNR in both. Or a .py with a function evaluate(model).",
    ),
]

Target = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="NAME",
        rich_help_panel=_FORMATS,
        help="The runtime: a name of `isobit targets`, or a .toml file. onnxruntime-cpu unless said, and default for "
        "formats that it lacks.",
        autocompletion=target_names,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="FORMAT",
        rich_help_panel=_FORMATS,
        help="Format of weights, for example int4 or 'int8 per-tensor'.",
        autocompletion=number_formats,
    ),
]
Activations = Annotated[
    str | None,
    typer.Option(
        "--activations",
        metavar="FORMAT",
        rich_help_panel=_FORMATS,
        help="Format of activations, for example uint16.",
        autocompletion=number_formats,
    ),
]
Override = Annotated[
    list[str] | None,
    typer.Option(
        "--override",
        metavar="NAME=FORMAT",
        rich_help_panel=_FORMATS,
        help="Another format for tensors or weights of this name; * and ? match; NAME=float is float. Repeatable.",
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="PATTERN",
        rich_help_panel=_FORMATS,
        help="Nodes (by name, * and ? match) or op types that stay in float. Repeatable.",
    ),
]
NoFold = Annotated[
    bool,
    typer.Option(
        "--no-fold", metavar="", rich_help_panel=_FORMATS, help="Do not fold batch norms into the layers beside them."
    ),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME",
        is_eager=True,  # it must be parsed before --explain, which reads it
        rich_help_panel=_FORMATS,
        help="What is done before calibration: fast, basic, ptq, transformer, or a .toml file; fast unless said.",
        autocompletion=recipe_names,
    ),
]
Explain = Annotated[
    bool,
    typer.Option(
        "--explain",
        metavar="",
        is_eager=True,
        callback=lambda context, asked: explain(context.params.get("recipe")) if asked else None,
        rich_help_panel=_FORMATS,
        help="Show the steps of every recipe, or of a --recipe named before, and exit.",
    ),
]
Backend = Annotated[
    str | None,
    typer.Option(
        "--backend",
        metavar="NAME",
        rich_help_panel=_FORMATS,
        help="The backend that opens the model; found by itself unless said.",
        autocompletion=backend_names,
    ),
]

Method = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="NAME",
        rich_help_panel=_DATA,
        help="Calibration: auto (the best of several by the outputs), minmax, moving-average, percentile, "
        "percentile=99.9, entropy, mse, sqnr or reader-error.",
        autocompletion=scheme_names,
    ),
]
Statistics = Annotated[
    list[Path] | None,
    typer.Option(
        "--statistics",
        metavar="FILE...",
        help="Statistics of earlier runs, in the order of their data; they are added up, and no data is needed.",
    ),
]
StatisticsExample = Annotated[
    Path | None,
    typer.Option(
        "--example",
        metavar="PATH",
        help="Some of the data of the statistics, for a model with an If or a loop: it says which branches run.",
    ),
]
FurtherStatistics = Annotated[list[Path] | None, typer.Argument(metavar="", hidden=True)]
CalibrationData = Annotated[
    Path | None, typer.Option("--data", metavar="PATH", help="Calibration data, as for `isobit quantize`.")
]
CalibratedOut = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FOLDER", help="Where the quantized model and its encodings are written."),
]
WriteStatistics = Annotated[
    Path | None, typer.Option("--write-statistics", metavar="FILE", help="Write the statistics, an .npz file.")
]
Resume = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        metavar="FILE",
        help="Go on from the statistics in this file if it exists; Ctrl-C keeps what there is in it.",
    ),
]
Processes = Annotated[
    int | None, typer.Option("--processes", metavar="N", min=1, help="Share the batches among this many processes.")
]

BatchSize = Annotated[
    int,
    typer.Option(
        "--batch-size",
        metavar="N",
        min=1,
        rich_help_panel=_DATA,
        help="Samples a batch, where the model leaves it open.",
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(
        "--samples", metavar="N", min=1, rich_help_panel=_DATA, help="Calibrate on at most this many samples."
    ),
]
IgnoreNonFinite = Annotated[
    bool,
    typer.Option("--ignore-non-finite", metavar="", rich_help_panel=_DATA, help="Accept NaN and infinity in the data."),
]
NoCheck = Annotated[
    bool,
    typer.Option(
        "--no-check",
        metavar="",
        rich_help_panel=_DATA,
        help="Do not compare the opened model with the file as given.",
    ),
]

ImageSize = Annotated[
    str | None,
    typer.Option(
        "--image-size", metavar="HxW", rich_help_panel=_IMAGES, help="Size to resize to; the input's own unless said."
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        "--mean", metavar="R,G,B", rich_help_panel=_IMAGES, help="Subtracted after --scale, in the order of --channels."
    ),
]
Std = Annotated[
    str | None, typer.Option("--std", metavar="R,G,B", rich_help_panel=_IMAGES, help="Divided by after --mean.")
]
Scale = Annotated[
    float | None,
    typer.Option(
        "--scale",
        metavar="FACTOR",
        rich_help_panel=_IMAGES,
        help="Multiplies the pixels 0..255 of float inputs; 1/255 unless said.",
    ),
]
ChannelOrder = Annotated[
    Channels | None, typer.Option("--channels", rich_help_panel=_IMAGES, help="rgb or gray by the input unless said.")
]
AxisOrder = Annotated[
    Layout | None, typer.Option("--layout", rich_help_panel=_IMAGES, help="By the input unless said.")
]

LatencyBatch = Annotated[
    int,
    typer.Option(
        "--latency-batch",
        metavar="N",
        min=0,
        rich_help_panel=_MEASURE,
        help="Samples a batch when latency is measured; 0 skips it.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        min=1,
        rich_help_panel=_MEASURE,
        help="Threads when latency is measured; all unless said.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", metavar="", help="Print the results as JSON.")]


@dataclass(frozen=True)
class Job:
    """Everything that was asked of one run."""

    model: Path
    data: Path
    out: Path
    evaluate: Path | None
    target: str | None
    weights: str | None
    activations: str | None
    overrides: dict[str, str | None]
    exclude: tuple[str, ...]
    fold: bool
    recipe: str | None
    backend: str | None
    method: str
    batch_size: int
    samples: int | None
    ignore_non_finite: bool
    check: bool
    images: ImageOptions
    latency_batch: int
    threads: int | None
    report: Path | None = None


def explain(recipe: str | None) -> None:
    """Print what a recipe, or every recipe, does. Raises typer.Exit."""
    from isobit.cli.terminal import line
    from isobit.plugins import registry

    names = [recipe] if recipe is not None else sorted(registry().recipes())
    for text in "\n\n".join(str(registry().recipe(name)) for name in names).splitlines():
        line(text)
    raise typer.Exit


def parse_overrides(texts: Sequence[str]) -> dict[str, str | None]:
    """``NAME=FORMAT`` texts as overrides; ``float`` is None. Raises typer.BadParameter."""
    overrides: dict[str, str | None] = {}
    for text in texts:
        name, equals, form = text.partition("=")
        name, form = name.strip(), form.strip()
        if not equals or not name or not form:
            raise typer.BadParameter(f"{text!r}: write NAME=FORMAT or NAME=float", param_hint="--override")
        overrides[name] = None if form.lower() == "float" else form
    return overrides
