"""Keras' MobileNetV2, calibrated: encodings for its own ONNX export, and what PyTorch needs to build its twin.

Usage: mobilenet_v2_keras.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
import tf2onnx
from safetensors.numpy import save_file

import isobit
from isobit.formats.isobit_json import IsobitJson
from isobit.techniques import FoldBatchNorms

SIZE, CLASSES = 64, 20


def trained_looking() -> keras.Model:
    """Random weights, and batch norms with the statistics of real activations, scales and shifts of their own."""
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2(
        (SIZE, SIZE, 3), alpha=0.35, weights=None, classes=CLASSES, classifier_activation=None
    )
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
            layer.gamma.assign(rng.uniform(0.8, 1.2, layer.gamma.shape))
            layer.beta.assign(rng.uniform(-0.3, 0.3, layer.beta.shape))
    model.layers[-1].bias.assign(rng.uniform(-0.1, 0.1, CLASSES))
    model(images(64, 1), training=True)  # with no momentum, one batch sets the statistics
    return model


def images(count: int, seed: int) -> np.ndarray:
    """Smooth random images."""
    coarse = np.random.default_rng(seed).standard_normal((count, SIZE // 8, SIZE // 8, 3)).astype(np.float32)
    return np.asarray(tf.image.resize(coarse, (SIZE, SIZE), "bicubic"))


def main(folder: Path) -> None:
    model = trained_looking()
    sim = isobit.QuantSim(model)
    sim.apply(FoldBatchNorms())
    sim.calibrate(images(64, 2))
    spec = [tf.TensorSpec([None, SIZE, SIZE, 3], tf.float32, name="image")]
    call = tf.function(lambda image: model(image), input_signature=spec, autograph=False)
    tf2onnx.convert.from_function(call, input_signature=spec, opset=17, output_path=str(folder / "model.onnx"))

    found = isobit.transfer(sim.encodings, sim, folder / "model.onnx")
    IsobitJson().write(found.encodings, folder / "onnx.json")
    batch = images(256, 3)
    outputs = {"simulated": next(iter(sim.run(batch).values())), "float": next(iter(sim.run_float(batch).values()))}
    save_file({variable.path: np.asarray(variable) for variable in model.variables}, folder / "weights.safetensors")
    save_file({"image": np.ascontiguousarray(batch), **outputs}, folder / "keras.safetensors")
    report = {"encodings": len(sim.encodings), "unmapped": list(map(str, found.unmapped)), "notes": found.notes}
    (folder / "keras.json").write_text(json.dumps(report), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
