"""The exported file holds and computes the simulator's integers, tensor by tensor."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers as L

import isobit

pytest.importorskip("onnxruntime")
from agreement import Comparison
from forced import Forced

from isobit.graph import Weight


def test_integers_of_every_tensor_and_constant(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    x = image = keras.Input((12, 12, 3), name="image")
    x = L.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="conv")(x)
    y = L.DepthwiseConv2D(3, padding="same", activation="relu6", name="depthwise")(x)
    x = L.Add(name="sum")([x, L.Conv2D(8, 1, activation="silu", name="point")(y)])
    x = L.Reshape((36, 8), name="tokens")(x)
    x = x + L.MultiHeadAttention(2, 4, name="attention")(L.LayerNormalization(name="norm")(x), x)
    model = keras.Model(image, L.Dense(5, name="logits")(L.GlobalAveragePooling1D(name="pool")(x)))
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal((4, 12, 12, 3)).astype(np.float32) for _ in range(3)]
    sim = isobit.quantize(model, batches)
    executed = Forced(sim, tmp_path)
    comparison = sum((executed.compare({"image": batch}) for batch in batches), Comparison())
    assert comparison.quantizers >= 12
    assert comparison.largest <= 1
    assert comparison.share > 0.999
    count, unequal = executed.unequal_constants()
    assert count >= 12
    assert unequal == []
    # another grid in the simulator alone is seen, by one constant and the bias whose scale follows from it
    site = Weight("conv/kernel")
    encoding = sim.encodings[site]
    sim.backend_model.native.quantizers[site].scale.assign(encoding.scale * 1.5)
    assert executed.unequal_constants()[1] == ["conv/bias", "conv/kernel"]
    assert executed.compare({"image": batches[0]}).share < comparison.share
