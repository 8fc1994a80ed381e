"""Masks that layers hand on beside their tensors: left out where nobody reads them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import keras

from isobit_tensorflow.read.emitter import Value

#: They take a mask and hand it to what is inside, or use it in training alone.
_NO_READERS = (keras.Model, keras.layers.TimeDistributed, keras.layers.BatchNormalization)

#: Layers with a rule that reads the mask.
_READ_BY_RULE = (
    keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN, keras.layers.RNN, keras.layers.Bidirectional,
    keras.layers.GlobalAveragePooling1D, keras.layers.Softmax,
)  # fmt: skip


def without_masks(node: Any) -> Mapping[str, Any]:
    """The named arguments of a call, without the masks that come to it with its tensors."""
    handed = {id(mask) for mask in _masks(node).values()}
    kwargs: Mapping[str, Any] = node.arguments.kwargs
    return {key: value for key, value in kwargs.items() if id(value) not in handed} if handed else kwargs


def with_masks(
    operation: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], masks: Mapping[str, Value]
) -> Mapping[str, Any]:
    """The named arguments with masks where Keras hands them on: `masks` are those of tensors, by name."""
    if not masks:
        return kwargs
    signature = inspect.signature(operation.call)
    bound = signature.bind_partial(
        *args, **{key: value for key, value in kwargs.items() if key in signature.parameters}
    )
    tensors = {
        key: value
        for key, value in bound.arguments.items()
        if any(isinstance(leaf, Value) for leaf in keras.tree.flatten(value))
    }
    names = {key: "mask" if len(tensors) == 1 else f"{key}_mask" for key in tensors}
    found = {
        name: keras.tree.map_structure(lambda leaf: masks.get(getattr(leaf, "name", "")), tensors[key])
        for key, name in names.items()
        if name in signature.parameters and bound.arguments.get(name) is None
    }
    return {**kwargs, **{key: value for key, value in found.items() if _any(value)}}


def is_masked(kwargs: Mapping[str, Any]) -> bool:
    """Whether a call has a mask among its named arguments."""
    return any(key.endswith("mask") and _any(value) for key, value in kwargs.items())


def _any(structure: Any) -> bool:
    return any(leaf is not None for leaf in keras.tree.flatten(structure))


def masks_read(node: Any) -> Mapping[int, Any]:
    """The masks that come with the tensors of a call and are read in it, by the id of the tensor."""
    return _masks(node) if reads_masks(node.operation) else {}


def _masks(node: Any) -> dict[int, Any]:
    if not isinstance(node.operation, keras.layers.Layer):
        return {}
    masks = {id(tensor): getattr(tensor, "_keras_mask", None) for tensor in node.input_tensors}
    return {tensor: mask for tensor, mask in masks.items() if mask is not None}


def reads_masks(operation: Any) -> bool:
    """Whether a layer, or one inside it, reads a mask in inference."""
    return isinstance(operation, keras.layers.Layer) and any(map(_reads, operation._flatten_layers()))


def takes_mask(operation: Any) -> bool:
    """Whether the rule of a layer reads the mask that the layer is called with."""
    return isinstance(operation, _READ_BY_RULE)


def _reads(layer: Any) -> bool:
    if isinstance(layer, _NO_READERS):
        return False
    return any(name.endswith("mask") for name in inspect.signature(layer.call).parameters)
