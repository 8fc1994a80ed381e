"""Well-known Keras architectures through the whole way: open, calibrate, run, export, onnxruntime.

Writes docs/keras-models.md. Reduced inputs, random weights (He-scaled), default target, batch norms folded, min-max
calibration. ``python docs/keras_models.py [NAME ...]``; names alone print and write nothing.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnxruntime
import tensorflow as tf
from keras import layers

import isobit

Make = Callable[[], keras.Model]


def application(name: str, size: int = 64, **settings: Any) -> Make:
    """A model of keras.applications with ten classes and random weights."""
    return lambda: getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classes=10, classifier_activation=None, **settings
    )


def vit() -> keras.Model:
    """A vision transformer: patches by a convolution, learned positions, two blocks."""
    x = image = keras.Input((32, 32, 3), name="image")
    x = layers.Conv2D(32, 8, 8, name="patches")(x)
    x = layers.Reshape((16, 32))(x)
    x = x + layers.Embedding(16, 32, name="positions")(keras.ops.expand_dims(keras.ops.arange(16), 0))
    for block in range(2):
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        y = layers.MultiHeadAttention(4, 8, dropout=0.1, name=f"attention{block}")(y, y)
        x = layers.Add()([x, layers.Dropout(0.1)(y)])
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        y = layers.Dense(64, activation="gelu", name=f"up{block}")(y)
        x = layers.Add()([x, layers.Dense(32, name=f"down{block}")(y)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization(epsilon=1e-6)(x))
    return keras.Model(image, layers.Dense(10, name="logits")(x))


def tagger() -> keras.Model:
    """Words to tags: embedding, a bidirectional LSTM, a GRU, a linear layer at every step."""
    words = keras.Input((12,), dtype="int32", name="words")
    x = layers.Embedding(50, 16, name="embedding")(words)
    x = layers.Bidirectional(layers.LSTM(16, return_sequences=True), name="both_ways")(x)
    x = layers.GRU(16, return_sequences=True, name="gru")(x)
    return keras.Model(words, layers.TimeDistributed(layers.Dense(8), name="tags")(x))


ARCHITECTURES: Mapping[str, Make] = {
    "MobileNet": application("MobileNet"),
    "MobileNetV2": application("MobileNetV2"),
    "MobileNetV3Small": application("MobileNetV3Small"),
    "EfficientNetB0": application("EfficientNetB0"),
    "EfficientNetV2B0": application("EfficientNetV2B0"),
    "ResNet50": application("ResNet50"),
    "ResNet50V2": application("ResNet50V2"),
    "DenseNet121": application("DenseNet121"),
    "VGG16": application("VGG16", 32),
    "InceptionV3": application("InceptionV3", 96),
    "Xception": application("Xception", 96),
    "NASNetMobile": application("NASNetMobile"),
    "ConvNeXtTiny": application("ConvNeXtTiny"),
    "ViT": vit,
    "LSTM tagger": tagger,
}


def inputs_like(model: keras.Model, seed: int, count: int = 4) -> Any:
    """A batch of random inputs: standard normal, or small indices."""
    rng = np.random.default_rng(seed)
    tensor = model.inputs[0]
    shape = (count, *tensor.shape[1:])
    if tensor.dtype == "int32":
        return rng.integers(0, 50, shape).astype(np.int32)
    return rng.standard_normal(shape).astype(np.float32)


def scaled(model: keras.Model) -> keras.Model:
    """He-scaled kernels of convolutions, which would fade to nothing otherwise."""
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        if "kernel" in variable.name and len(variable.shape) == 4:
            depthwise = variable.shape[-1] == 1 or "depthwise" in variable.path
            fan = int(np.prod(variable.shape[:2] if depthwise else variable.shape[:3]))
            variable.assign(rng.standard_normal(variable.shape) * np.sqrt(2 / fan))
    return model


def decibels(signal: np.ndarray, other: np.ndarray) -> str:
    """Signal-to-noise ratio in dB; "equal" where every bit agrees."""
    if np.array_equal(signal, other):
        return "equal"
    noise = np.square(signal.astype(np.float64) - other).sum()
    return f"{10 * np.log10(np.square(signal.astype(np.float64)).sum() / noise):.1f}"


def row(name: str, make: Make) -> str:
    """One line of the table."""
    stage = "build"
    try:
        keras.utils.set_random_seed(0)
        model = scaled(make())
        data = [inputs_like(model, seed) for seed in range(3)]
        expected = np.asarray(model(data[0], training=False))
        stage = "open"
        sim = isobit.QuantSim(model)
        key, entry = next(iter(sim.graph.outputs)), sim.graph.inputs[0]
        error = np.abs(sim.run_float(data[0])[key] - expected).max() / max(1.0, np.abs(expected).max())
        stage = "calibrate"
        sim.apply(isobit.techniques.FoldBatchNorms())
        sim.calibrate(data, progress=False)
        simulated, plain = sim.run(data[0])[key], sim.run_float(data[0])[key]
        stage = "export"
        with tempfile.TemporaryDirectory() as folder:
            paths = sim.export(folder)
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.add_session_config_entry("session.disable_quant_qdq", "1")
            session = onnxruntime.InferenceSession(str(paths["model"]), options)
            executed = session.run([key], {entry: data[0]})[0]
    except Exception as failure:
        return f"| {name} | no, at {stage}: {type(failure).__name__}: {' '.join(str(failure).split())[:200]} | | | | |"
    floats = ", ".join(dict.fromkeys(note.split(": ")[0] for note in sim.graph.notes)) or "none"
    figures = f"{error:.0e} | {decibels(plain, simulated)} | {decibels(simulated, executed)}"
    return f"| {name} | yes, {len(sim.plan.placements)} sites | {figures} | {floats} |"


def main() -> None:
    """Print the table; write it when no name is given."""
    warnings.simplefilter("ignore")
    wanted, lines = sys.argv[1:], [HEADER]
    for name, make in ARCHITECTURES.items():
        if not wanted or name in wanted:
            lines.append(row(name, make))
            print(lines[-1], flush=True)
            keras.backend.clear_session()
    if not wanted:
        versions = f"TensorFlow {tf.__version__}, Keras {keras.__version__}, onnxruntime {onnxruntime.__version__}"
        text = "\n".join(lines)
        Path(__file__).with_name("keras-models.md").write_text(
            f"{text}\n\nMade by docs/keras_models.py with {versions}.\n"
        )


HEADER = """# Keras architectures

Random weights and reduced inputs, opened, batch norms folded, calibrated (min-max), run, and exported to a QDQ model
that onnxruntime runs in float (`session.disable_quant_qdq`). SQNR in dB: the simulator against the float model, and
onnxruntime against the simulator. The float error is relative to the largest output.

| architecture | works | float error | simulator | onnxruntime | operations left in float |
|---|---|---|---|---|---|"""


if __name__ == "__main__":
    main()
