"""What to try after a poor result: the user's command with one thing changed."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence

from isobit.cli.quantize_options import Job
from isobit.defaults import DEFAULT_RECIPE
from isobit.encodings.quant_spec import QuantSpec

_Options = Mapping[str, Sequence[str]]


def next_command(job: Job, activation_types: Collection[str]) -> str | None:
    """The first that was not tried yet: a recipe, another calibration, more bits; None where all were.

    `activation_types` are those that the target has.
    """
    change = _change(job, activation_types)
    if change is None:
        return None
    options = {**_options(job), **change}
    words = ["isobit", "quantize", str(job.model), "--data", str(job.data)]
    for option, values in options.items():
        words += [word for value in values for word in ([option, value] if value else [option])]
    return shlex.join([*words, "-o", str(job.out)])


def _change(job: Job, activation_types: Collection[str]) -> _Options | None:
    if job.fold and job.recipe in (None, "basic", DEFAULT_RECIPE):
        return {"--recipe": ["ptq"]}
    if job.method != "auto":
        return {"--method": ["auto"]}
    if job.weights is not None and QuantSpec.parse(job.weights).bits < 8:
        return {"--weights": ["int8"]}
    if job.activations is None and "int16" in activation_types:
        return {"--activations": ["int16"]}
    return None


def _options(job: Job) -> dict[str, Sequence[str]]:
    """The options of a job that are not their defaults; an empty value is that of a flag."""
    images = job.images
    texts = {
        "--evaluate": job.evaluate,
        "--target": job.target,
        "--weights": job.weights,
        "--activations": job.activations,
        "--recipe": job.recipe,
        "--backend": job.backend,
        "--method": None if job.method == "auto" else job.method,
        "--batch-size": None if job.batch_size == 32 else job.batch_size,
        "--samples": job.samples,
        "--image-size": None if images.size is None else "x".join(map(str, images.size)),
        "--mean": _numbers(images.mean),
        "--std": _numbers(images.std),
        "--scale": images.scale,
        "--channels": images.channels,
        "--layout": images.layout,
        "--latency-batch": None if job.latency_batch == 8 else job.latency_batch,
        "--threads": job.threads,
        "--report": job.report,
    }
    flags = {
        "--no-fold": not job.fold,
        "--ignore-non-finite": job.ignore_non_finite,
        "--no-check": not job.check,
    }
    return {
        **{option: [str(value)] for option, value in texts.items() if value is not None},
        "--override": [f"{name}={form or 'float'}" for name, form in job.overrides.items()],
        "--exclude": list(job.exclude),
        **{option: [""] for option, is_on in flags.items() if is_on},
    }


def _numbers(values: Sequence[float] | None) -> str | None:
    return None if values is None else ",".join(f"{value:g}" for value in values)
