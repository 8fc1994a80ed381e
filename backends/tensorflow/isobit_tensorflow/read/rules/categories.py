"""Numbers as categories, and categories as vectors: comparisons with constants, which every runtime has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from isobit_tensorflow.read.call import Call, Rule
from isobit_tensorflow.read.emitter import Value, in_float32
from isobit_tensorflow.read.parameters import Computed
from isobit_tensorflow.read.rules.merging import broadcast
from isobit_tensorflow.read.rules.native import native_layer

#: Constants that each number is compared with; longer tables are looked up as Keras does it.
_LONGEST = 4096


def _one_hot(call: Call) -> Value | None:
    """By comparing: ONNX's OneHot counts negative numbers from the end, where Keras has zeros."""
    e, x = call.emitter, call.argument(0)
    axis, depth = call.setting("axis", -1), call.setting("num_classes")
    if not isinstance(x, Value) or x.is_float or axis not in (-1, x.rank) or call.setting("sparse"):
        return None
    x = e.plain(x)
    wide = e.emit("Unsqueeze", f"{call.name}/ids", [x], (*x.shape, 1), x.dtype, axes=(x.rank,))
    same = broadcast(call, "Equal", [wide, np.arange(depth)], f"{call.name}/equal", "bool")
    dtype = in_float32(keras.backend.standardize_dtype(call.setting("dtype") or keras.config.floatx()))
    return e.emit("Cast", call.name, [same], (*x.shape, depth), dtype, to=dtype)


def _arg(op: str) -> Rule:
    """The place of the largest or smallest value along one axis."""

    def rule(call: Call) -> Value | None:
        e, x, axis = call.emitter, call.emitter.plain(call.x), call.setting("axis")
        if axis is None:
            return None
        place, keep = int(axis) % x.rank, bool(call.setting("keepdims"))
        shape = [1 if i == place else n for i, n in enumerate(x.shape) if keep or i != place]
        found = e.emit(op, f"{call.name}/place", [x], shape, "int64", axis=place, keepdims=int(keep))
        return e.emit("Cast", call.name, [found], shape, "int32", to="int32")

    return rule


def entries_taken(call: Call) -> Value | None:
    """Entries of an axis at places that the model has as constants."""
    e, x, places, axis = call.emitter, call.argument(0), call.argument(1), call.setting("axis")
    places = places.array if isinstance(places, Computed) and not places.variables else places
    if not isinstance(x, Value) or axis is None or isinstance(places, Value | keras.Variable):
        return None
    x, axis = e.plain(x), int(axis) % x.rank
    array = np.asarray(places)
    size = x.shape[axis]
    if array.dtype.kind not in "iu" or (array.size and array.min() < 0 and size is None):
        return None
    array = np.where(array < 0, array + (size or 0), array)
    name = e.constant(f"{call.name}/places", array, np.int64)
    return e.emit(
        "Gather", call.name, [x, name], (*x.shape[:axis], *array.shape, *x.shape[axis + 1 :]), x.dtype, axis=axis
    )


def _discretization(call: Call) -> Any:
    """How many of the boundaries a number reaches."""
    layer = call.operation
    boundaries = np.asarray(layer.bin_boundaries, np.float32) if layer.bin_boundaries is not None else np.zeros(0)
    if not 0 < boundaries.size <= _LONGEST or layer.sparse:
        return native_layer(call)

    def bins(x: Any) -> Any:
        reached = ops.greater_equal(ops.expand_dims(ops.cast(x, "float32"), -1), boundaries)
        return _encoded(layer, ops.sum(ops.cast(reached, "int32"), -1), boundaries.size + 1)

    return call.reader.open(bins, call.name, call.args, {}, layer)


def _integer_lookup(call: Call) -> Any:
    """Which entry of the vocabulary a number is; the others are one category."""
    layer = call.operation
    words = np.asarray(layer.get_vocabulary(include_special_tokens=False), np.int64)
    simple = layer.num_oov_indices == 1 and not layer.invert and not layer.sparse and layer.output_mode != "tf_idf"
    masks = layer.mask_token is not None
    if not simple or not 0 < words.size <= _LONGEST or (masks and layer.output_mode != "int"):
        return native_layer(call)
    unknown = layer._oov_start_index()
    beyond = np.arange(1, words.size + 1, dtype=np.int64)  # places of the words, counted from the unknown on
    depth = layer.max_tokens if layer.pad_to_max_tokens else layer.vocabulary_size()

    def places(x: Any) -> Any:
        same = ops.cast(ops.equal(ops.expand_dims(ops.cast(x, "int64"), -1), words), "int64")
        found = ops.sum(same * beyond, -1) + unknown
        if masks:
            found = ops.where(ops.equal(ops.cast(x, "int64"), layer.mask_token), 0, found)
        return _encoded(layer, found, depth)

    return call.reader.open(places, call.name, call.args, {}, layer)


def _category_encoding(call: Call) -> Any:
    """Whole numbers as vectors."""
    layer = call.operation
    plain = len(call.args) == 1 and not call.kwargs and not layer.sparse and isinstance(call.args[0], Value)
    if not plain or call.x.is_float:
        return native_layer(call)
    return call.reader.open(lambda x: _encoded(layer, x, layer.num_tokens), call.name, call.args, {}, layer)


def _encoded(layer: Any, places: Any, depth: int) -> Any:
    """Places as Keras gives them out in each `output_mode`."""
    if layer.output_mode == "int":
        return ops.cast(places, layer.compute_dtype if "int" in layer.compute_dtype else "int64")
    dtype = layer.compute_dtype if "float" in layer.compute_dtype else keras.config.floatx()
    if layer.output_mode == "one_hot":
        places = ops.squeeze(places, -1) if len(places.shape) > 1 and places.shape[-1] == 1 else places
        return ops.one_hot(places, depth, dtype=dtype)
    if len(places.shape) == 1:
        places = ops.expand_dims(places, -1)
    vectors = ops.one_hot(places, depth, dtype=dtype)
    return ops.max(vectors, -2) if layer.output_mode == "multi_hot" else ops.sum(vectors, -2)


LAYERS: Mapping[type, Rule] = {
    keras.layers.Discretization: _discretization,
    keras.layers.IntegerLookup: _integer_lookup,
    keras.layers.CategoryEncoding: _category_encoding,
}

OPERATIONS: Mapping[str, Callable[[Call], Any]] = {
    "OneHot": _one_hot,
    "Argmax": _arg("ArgMax"),
    "Argmin": _arg("ArgMin"),
}
