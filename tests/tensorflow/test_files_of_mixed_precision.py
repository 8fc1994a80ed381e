"""A mixed policy: the simulator computes in 16 bits, as the model does, and the file in float32."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

import isobit


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_the_difference_is_no_fault(policy: str, tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 3))
    found = layers.Conv2D(8, 3, dtype=policy)(x)
    found = layers.ReLU(dtype=policy)(found)
    found = layers.Conv2D(8, 3, dtype=policy)(found)
    y = layers.Flatten(dtype="float32")(found)
    data = np.random.default_rng(0).standard_normal((16, 8, 8, 3)).astype(np.float32)
    sim = isobit.quantize(keras.Model(x, y), data, recipe="basic", method="minmax", progress=False)
    check = sim.export(tmp_path).checks[0]
    assert check.equal < 0.99
    kind = policy.removeprefix("mixed_")
    assert check.remark == f"the simulator computes in {kind}, as the model does, and the file in float32"
