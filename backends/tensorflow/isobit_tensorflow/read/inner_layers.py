"""Layers inside a layer that is opened: their results are told by calling them, where they cannot tell themselves.

Keras asks a layer that is called with symbolic tensors for the shapes of its results. Inside other layers it never
does, so what a layer says of itself may not fit its call there: that of a MultiHeadAttention which takes a cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras.src import backend

from isobit_tensorflow.read.in_this_thread import in_this_thread


@contextmanager
def inner_layers() -> Iterator[None]:
    """Layers whose arguments `compute_output_spec` does not take are traced for the shapes of their results."""
    usual = keras.layers.Layer.symbolic_call

    def symbolic_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return usual(self, *args, **kwargs)
        except TypeError:
            return backend.compute_output_spec(self.call, *args, **kwargs)

    keras.layers.Layer.symbolic_call = in_this_thread(symbolic_call, usual)
    try:
        yield
    finally:
        keras.layers.Layer.symbolic_call = usual
