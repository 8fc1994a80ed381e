"""One layer rounded from its Gram, and by the usual AdaRound with thousands of iterations: output error and seconds.

    python benchmarks/rounding.py --layer conv linear --iterations 10000 --json result.json

Errors are shares of the output's power, on the data that was rounded for and on as much new data. All methods get the
same min-max int4 per-channel grid but those called "searched".
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import conv2d

from isobit.encodings import QuantSpec
from isobit.graph import Weight
from isobit.placement import Placement
from isobit.statistics import Gram, Patches, Rows
from isobit.techniques import GPTQ, AdaRound, SequentialMse
from isobit.techniques.rounding import Objective
from isobit.techniques.rounding.layers import Layer
from isobit.techniques.rounding.problem import Problem
from isobit.techniques.rounding.procedure import Procedure

Array = NDArray[np.float32]
Output = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Case(NamedTuple):
    """Inputs of a layer, as many new ones, its weight, and how it computes."""

    inputs: Array
    new: Array
    weight: Array
    patches: Patches
    output: Output


def conv_case() -> Case:
    """64 -> 64, 3x3 on 28x28 images: smooth, mixed over channels and rectified, as inside a network."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((128, 64, 28, 28))
    distance = np.fft.fftfreq(28)[:, None] ** 2 + np.fft.rfftfreq(28)[None] ** 2
    smooth = np.fft.irfft2(np.fft.rfft2(noise) * np.exp(-16 * distance), s=(28, 28))
    mix = np.eye(64) + 0.3 * rng.standard_normal((64, 64))
    gain, shift = rng.uniform(0.3, 1.5, (64, 1, 1)), 0.3 * rng.standard_normal((64, 1, 1))
    images = np.maximum(np.einsum("oc,nchw->nohw", mix, smooth / smooth.std()) * gain + shift, 0).astype(np.float32)
    weight = (rng.standard_normal((64, 64, 3, 3)) * math.sqrt(2 / 576)).astype(np.float32)
    patches = Patches("Conv", weight.shape, 1, (1, 1), (1, 1), (1, 1, 1, 1), (0, 0))
    return Case(images[:64], images[64:], weight, patches, lambda x, w: conv2d(x, w, padding=1))


def linear_case() -> Case:
    """384 -> 1536 on 2,048 tokens whose features are correlated and of different sizes."""
    rng = np.random.default_rng(1)
    latent = rng.standard_normal((4096, 96)) @ rng.standard_normal((96, 384)) / 10
    tokens = (latent + 0.4 * rng.standard_normal((4096, 384))) * rng.lognormal(0, 0.5, 384)
    weight = (rng.standard_normal((1536, 384)) * 0.05).astype(np.float32)
    tokens = tokens.astype(np.float32)
    return Case(tokens[:2048], tokens[2048:], weight, Patches("Linear", weight.shape), lambda x, w: x @ w.T)


def usual_adaround(case: Case, scale: Array, q_min: int, q_max: int, iterations: int) -> Array:
    """The method of the paper: soft rounding by a rectified sigmoid, Adam, and a pull to 0 and 1 that sharpens.

    Batches of 32 images, or 512 tokens; learning rate 1e-3; regularisation 0.01, off for the first fifth; beta from 20
    to 2 along a cosine. Source: Nagel et al. 2020, sections 3.3 and 5, and AIMET's defaults.
    """
    x, w, s = torch.from_numpy(case.inputs), torch.from_numpy(case.weight), torch.from_numpy(np.array(scale))
    floor = torch.floor(w / s)
    fraction = (w / s - floor).clamp(1e-4, 1 - 1e-4)
    alpha = (-torch.log(1.2 / (fraction + 0.1) - 1)).requires_grad_()
    optimizer = torch.optim.Adam([alpha], lr=1e-3)
    rng = torch.Generator().manual_seed(0)
    batch = 32 if case.patches.kernel else 512
    with torch.no_grad():
        expected = case.output(x, w)
    for iteration in range(iterations):
        index = torch.randperm(len(x), generator=rng)[:batch]
        h = (torch.sigmoid(alpha) * 1.2 - 0.1).clamp(0, 1)
        outputs = case.output(x[index], torch.clamp(floor + h, q_min, q_max) * s)
        loss = (outputs - expected[index]).square().sum(1).mean()
        progress = (iteration / iterations - 0.2) / 0.8
        if progress > 0:
            beta = 2 + 9 * (1 + math.cos(math.pi * progress))
            loss = loss + 0.01 * (1 - (2 * h - 1).abs().pow(beta)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return (torch.clamp(floor + (alpha >= 0), q_min, q_max) * s).numpy()


def error(case: Case, data: Array, rounded: Array) -> float:
    """Mean squared difference of the outputs as a share of their power."""
    with torch.no_grad():
        x = torch.from_numpy(data)
        expected = case.output(x, torch.from_numpy(case.weight))
        return float((case.output(x, torch.from_numpy(rounded)) - expected).square().sum() / expected.square().sum())


def measure(name: str, case: Case, iterations: list[int]) -> dict[str, Any]:
    """Errors and seconds by method."""
    spec = QuantSpec.parse("int4 per-channel")
    placement = Placement(Weight("w"), spec, "weight", channel_axis=0, block_axis=1)
    layer = Layer("w", placement, {name: case.patches})
    figures: dict[str, Any] = {}

    def note(method: str, rounded: Array, seconds: float) -> None:
        error_on_inputs, error_on_new = error(case, case.inputs, rounded), error(case, case.new, rounded)
        figures[method] = {"error": error_on_inputs, "new": error_on_new, "seconds": seconds}
        print(f"{name:<8}{method:<28}{error_on_inputs:10.5f}{error_on_new:10.5f}{seconds:9.2f} s", flush=True)

    start = time.perf_counter()
    rows = Rows(case.patches, Procedure().limit(layer))
    rows.update(case.inputs)
    gram = Gram.of(rows)
    problem = Problem(layer, case.weight, Objective.of(case.patches.matrix(case.weight), gram))
    print(f"{name:<8}{'rows and Gram':<28}{'':20}{time.perf_counter() - start:9.2f} s")
    encoding = problem.min_max()
    note("nearest", encoding.fake_quantize(case.weight), 0.0)
    methods = {
        "SequentialMse": SequentialMse(),
        "GPTQ": GPTQ(scales="minmax"),
        "AdaRound": AdaRound(scales="minmax"),
        "AdaRound, scales searched": AdaRound(),
    }
    for method, technique in methods.items():
        technique._solve(problem)  # compiles, and warms up
        start = time.perf_counter()
        integers, grid = technique._solve(problem)
        seconds = time.perf_counter() - start
        note(method, grid.dequantize(integers.reshape(case.weight.shape)), seconds)
    scale = encoding.broadcast(case.weight.shape)[0]
    for count in iterations:
        start = time.perf_counter()
        rounded = usual_adaround(case, scale, spec.q_min, spec.q_max, count)
        note(f"usual AdaRound, {count}", rounded, time.perf_counter() - start)
    return figures


def main() -> None:
    cases = {"conv": conv_case, "linear": linear_case}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", choices=sorted(cases), nargs="*", default=sorted(cases))
    parser.add_argument("--iterations", type=int, nargs="*", default=[10_000])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = {name: measure(name, cases[name](), args.iterations) for name in args.layer}
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
