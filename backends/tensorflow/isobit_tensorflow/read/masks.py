"""Masks that layers hand on beside their tensors: left out where nobody reads them, refused where they are read."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import keras

from isobit.errors import ModelError

#: They take a mask and hand it to what is inside, or use it in training alone.
_NO_READERS = (keras.Model, keras.layers.TimeDistributed, keras.layers.BatchNormalization)

#: They read a mask by operations of `keras.ops`, so that they can be opened with it.
_OPENED = (keras.layers.GlobalAveragePooling1D, keras.layers.Softmax)


def without_unread_masks(node: Any, name: str) -> Mapping[str, Any]:
    """The named arguments of a call, without masks that come to it with its tensors and have no effect.

    Raises ModelError where the layer, or one inside it, reads such a mask.
    """
    operation: Any = node.operation
    kwargs: Mapping[str, Any] = node.arguments.kwargs
    masks = [mask for tensor in node.input_tensors if (mask := getattr(tensor, "_keras_mask", None)) is not None]
    if not masks or not isinstance(operation, keras.layers.Layer):
        return kwargs
    handed = {key for key, value in kwargs.items() if any(value is mask for mask in masks)}
    readers = [layer for layer in operation._flatten_layers() if _reads(layer)]
    if not readers:
        return {key: value for key, value in kwargs.items() if key not in handed}
    if handed and type(operation) in _OPENED:
        return kwargs
    reader = f"{name!r} ({type(operation).__name__})"
    raise ModelError(
        f"{reader} reads the mask that a layer before it makes (mask_zero=True, Masking), which isobit does not read: "
        "give the mask as a tensor, or make none"
    )


def _reads(layer: Any) -> bool:
    if isinstance(layer, _NO_READERS):
        return False
    return any(name.endswith("mask") for name in inspect.signature(layer.call).parameters)
