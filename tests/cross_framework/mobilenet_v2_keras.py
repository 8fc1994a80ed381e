"""Keras' MobileNetV2, calibrated: encodings for its own ONNX export, and what PyTorch needs to build the same network.

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

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
SIZE, CLASSES = 32, 10
EPOCHS, BATCH = 30, 60


def trained() -> keras.Model:
    """On a few hundred digits, until its outputs are clear-cut: random weights of this depth amplify every last bit.

    One processor's result differs from another's.
    """
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2(
        (SIZE, SIZE, 3), alpha=0.35, weights=None, classes=CLASSES, classifier_activation=None
    )
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.8  # Keras' 0.999 takes thousands of steps
    with np.load(DIGITS / "test.npz") as archive:
        images, labels = coloured(archive["image"]), archive["label"]
    rate = keras.optimizers.schedules.CosineDecay(3e-3, EPOCHS * -(-len(images) // BATCH))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, jit_compile=False)
    model.fit(images, labels, batch_size=BATCH, epochs=EPOCHS, verbose=0)
    return model


def coloured(images: np.ndarray) -> np.ndarray:
    """Three equal channels, last, from -1 to 1."""
    return np.ascontiguousarray(np.repeat(images.transpose(0, 2, 3, 1) * 2 - 1, 3, axis=3), np.float32)


def main(folder: Path) -> None:
    model = trained()
    with np.load(DIGITS / "calibration.npz") as archive:
        batch = coloured(archive["image"])
    sim = isobit.QuantSim(model)
    sim.apply(FoldBatchNorms())
    sim.calibrate(batch[:128])
    spec = [tf.TensorSpec([None, SIZE, SIZE, 3], tf.float32, name="image")]
    call = tf.function(lambda image: model(image), input_signature=spec, autograph=False)
    tf2onnx.convert.from_function(call, input_signature=spec, opset=17, output_path=str(folder / "model.onnx"))

    transferred = isobit.transfer(sim.encodings, sim, folder / "model.onnx")
    IsobitJson().write(transferred.encodings, folder / "onnx.json")
    outputs = {"simulated": next(iter(sim.run(batch).values())), "float": next(iter(sim.run_float(batch).values()))}
    save_file({variable.path: np.asarray(variable) for variable in model.variables}, folder / "weights.safetensors")
    save_file({"image": batch, **outputs}, folder / "keras.safetensors")
    report = {
        "encodings": len(sim.encodings),
        "unmapped": list(map(str, transferred.unmapped)),
        "notes": transferred.notes,
    }
    (folder / "keras.json").write_text(json.dumps(report), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
