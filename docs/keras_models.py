"""Well-known Keras architectures through the whole way: open, calibrate, run, export, onnxruntime.

Writes docs/keras-models.md. Reduced inputs, random weights (He-scaled), default target, batch norms folded, min-max
calibration on other batches than those that are measured. ``python docs/keras_models.py [NAME ...]`` measures these
rows anew and keeps the others.
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
from numpy.typing import NDArray

import isobit

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "agreement"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "tensorflow"))
from agreement import Comparison, Row, Sums
from forced import Forced

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
    "MobileNetV3Large": application("MobileNetV3Large"),
    "EfficientNetB0": application("EfficientNetB0"),
    "EfficientNetV2B0": application("EfficientNetV2B0"),
    "ResNet50": application("ResNet50"),
    "ResNet50V2": application("ResNet50V2"),
    "DenseNet121": application("DenseNet121"),
    "VGG16": application("VGG16", 32),
    "InceptionV3": application("InceptionV3", 96),
    "InceptionResNetV2": application("InceptionResNetV2", 96),
    "Xception": application("Xception", 96),
    "NASNetMobile": application("NASNetMobile"),
    "ConvNeXtTiny": application("ConvNeXtTiny"),
    "ViT": vit,
    "LSTM tagger": tagger,
}


def inputs_like(model: keras.Model, seed: int, count: int = 4) -> Any:
    """A batch of random inputs: pixels where the model scales them itself, else standard normal, or small indices."""
    rng = np.random.default_rng(seed)
    tensor = model.inputs[0]
    shape = (count, *tensor.shape[1:])
    if tensor.dtype == "int32":
        return rng.integers(0, 50, shape).astype(np.int32)
    if any(isinstance(layer, layers.Rescaling | layers.Normalization) for layer in model.layers):
        return rng.integers(0, 256, shape).astype(np.float32)
    return rng.standard_normal(shape).astype(np.float32)


def scaled(model: keras.Model) -> keras.Model:
    """He-scaled kernels of convolutions, which would fade to nothing otherwise; quiet branches in EfficientNets.

    The last batch norm of their residual branches gets a small gamma (Goyal et al. 2017, "Accurate, Large Minibatch
    SGD", start at 0): at 1 these deep random networks amplify a relative change of 1e-7 a thousandfold and more.
    It takes what the simulator rounds with it: MobileNetV3Small has 20.5 dB so, and 23.3 with gammas of 1.
    """
    rng = np.random.default_rng(0)
    names = {layer.name for layer in model.layers}
    for variable in model.trainable_variables:
        block = variable.path.removesuffix("project_bn/gamma")
        if f"{block}add" in names:
            variable.assign(np.full(variable.shape, 0.25))
        if "kernel" in variable.name and len(variable.shape) == 4:
            depthwise = variable.shape[-1] == 1 or "depthwise" in variable.path
            fan = int(np.prod(variable.shape[:2] if depthwise else variable.shape[:3]))
            variable.assign(rng.standard_normal(variable.shape) * np.sqrt(2 / fan))
    return model


def measure(make: Make) -> Row:
    """Take one architecture the whole way."""
    keras.utils.set_random_seed(0)
    model = scaled(make())
    evaluation = [inputs_like(model, seed) for seed in EVALUATION]
    sim = isobit.QuantSim(model)
    key, entry = next(iter(sim.graph.outputs)), sim.graph.inputs[0]
    error = max(_float_error(sim.run_float(x)[key], model(x, training=False)) for x in evaluation)
    floats = ", ".join(dict.fromkeys(note.split(": ")[0] for note in sim.graph.notes if "in float" in note)) or "none"
    sim.apply(isobit.techniques.FoldBatchNorms())
    sim.calibrate([inputs_like(model, seed) for seed in CALIBRATION], progress=False)
    sums, integers = Sums(), Comparison()
    with tempfile.TemporaryDirectory() as folder:
        executed = Forced(sim, Path(folder))
        constants = executed.unequal_constants()
        for x in evaluation:
            sums.add(sim.run_float(x), sim.run(x), executed.run({entry: x}), None, classes=True)
            integers += executed.compare({entry: x})
        other = {entry: inputs_like(model, 300, count=3)}
        resized = Sums()
        resized.add(sim.run_float(other), sim.run(other), executed.run(other), None, classes=True)
    sizes = "yes" if resized.close else "differs"
    return Row(len(sim.plan.placements), error, sums, integers, constants, floats, sizes)


def _float_error(found: NDArray[np.float32], expected: Any) -> float:
    """The largest difference of the opened model from the user's, relative to the largest value."""
    wanted = np.asarray(expected)
    return float(np.abs(found - wanted).max() / max(1.0, float(np.abs(wanted).max())))


def line(name: str) -> str:
    """One line of the table."""
    try:
        cells = measure(ARCHITECTURES[name]).cells()
    except isobit.errors.IsobitError as error:
        cells = [f"no: {' '.join(str(error).split())}", *[""] * 11]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Measure the architectures named, or all; each row is written as soon as it is there."""
    warnings.simplefilter("ignore")
    versions = f"TensorFlow {tf.__version__}, Keras {keras.__version__}, onnxruntime {onnxruntime.__version__}"
    rows = {row.split("|")[1].strip(): row for row in PAGE.read_text().splitlines() if row.startswith("| ")}
    for name in sys.argv[1:] or ARCHITECTURES:
        rows[name] = line(name)
        print(rows[name], flush=True)
        table = "\n".join(rows[known] for known in ARCHITECTURES if known in rows)
        PAGE.write_text(f"{HEADER}\n{table}\n\nMade by docs/keras_models.py with {versions}.\n")
        keras.backend.clear_session()


CALIBRATION, EVALUATION = range(100, 104), range(200, 202)

PAGE = Path(__file__).with_name("keras-models.md")

HEADER = """# Keras architectures

Random weights (docs/keras_models.py scales them) and reduced inputs, opened, batch norms folded, calibrated (min-max, 4
batches), run, exported to a QDQ model, and run in onnxruntime in float (`session.disable_quant_qdq`). Measured on 2
other batches of 4.

- **works**: each quantized tensor, computed by TensorFlow from onnxruntime's integers before it, has at least 99.9 %
  equal integers and none off by more than 1, stored weights and biases are the simulator's, and end to end onnxruntime
  is 20 dB nearer to the simulator than the simulator is to the float model, or chooses the same class in 99.5 % of
  cases. A deep random network amplifies a rounding that tips anywhere, so the integers say more than the outputs.
- **float error**: of the opened model against the user's, relative to the largest output.
- **simulator**, **onnxruntime**: SQNR in dB, the simulator against the float model, onnxruntime against the simulator.
- **integers**: quantized tensors compared, share of equal integers, largest difference.
- **other batch**: whether another batch size runs through simulator and file, and agrees.
- **in float**: operations without a mapping; they run as they are.

| architecture | works | sites | float error | simulator | onnxruntime | top-1 | tensors | integers | off by | weights \
| other batch | in float |
|---|---|---|---|---|---|---|---|---|---|---|---|---|"""


if __name__ == "__main__":
    main()
