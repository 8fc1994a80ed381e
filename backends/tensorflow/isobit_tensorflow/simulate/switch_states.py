"""Which quantizers are on, read in one step: one by one, hundreds of variables take longer than a small pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from isobit_tensorflow.simulate.quantizers import Quantizer
from isobit_tensorflow.simulate.variables import is_distributed, native_variable

#: Times that switches are read one by one before the function is traced, which takes as long as about so many.
_ONE_BY_ONE = 5


class SwitchStates:
    """Reads the switches of the quantizers that it was asked for last."""

    def __init__(self) -> None:
        self._layers: list[Quantizer] = []
        self._asked = 0
        self._read: Callable[[], Any] | None = None

    def of(self, layers: Sequence[Quantizer]) -> set[bool]:
        """The states that there are among them, asked each time: whoever holds the variables may set them."""
        if len(self._layers) != len(layers) or any(a is not b for a, b in zip(self._layers, layers, strict=True)):
            self._layers, self._asked, self._read = list(layers), 0, None
        self._asked += 1
        if self._asked <= _ONE_BY_ONE or not layers or any(is_distributed(layer.on) for layer in layers):
            return {layer.enabled for layer in layers}
        if self._read is None:
            self._read = _reader([native_variable(layer.on) for layer in layers])
        return set(map(bool, self._read().numpy()))


def _reader(variables: Sequence[Any]) -> Callable[[], Any]:
    """One function for all; it is traced here, since TensorFlow warns of functions that are traced when called."""

    def read() -> Any:
        return tf.stack([variable.read_value() for variable in variables])

    traced: Callable[[], Any] = tf.function(read, autograph=False).get_concrete_function()
    return traced
