"""TimeDistributed; and Masking, whose mask is told by the layers that read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from isobit.errors import ModelError
from isobit_tensorflow.read.call import Call, Rule
from isobit_tensorflow.read.emitter import Value

_STEPS_ALIKE = (
    keras.layers.Dense, keras.layers.Activation, keras.layers.ReLU, keras.layers.LayerNormalization,
    keras.layers.Dropout, keras.layers.Embedding, keras.layers.Rescaling,
)  # fmt: skip


def _time_distributed(call: Call) -> Any:
    """A layer that treats steps alike is called on all of them; any other sees the steps as samples."""
    inner, x = call.operation.layer, call.x
    if isinstance(inner, _STEPS_ALIKE):
        return call.reader.apply(inner, f"{call.name}/{call.reader.name_of(inner)}", (x,), {})
    steps = x.shape[1]
    if steps is None:
        raise ModelError(f"{call.name!r}: TimeDistributed around {type(inner).__name__} needs a known number of steps")
    flat = _merged(call, x, x.shape[2:], f"{call.name}/steps")
    result = call.reader.apply(inner, f"{call.name}/{call.reader.name_of(inner)}", (flat,), {})
    if not isinstance(result, Value):
        raise ModelError(f"{call.name!r}: TimeDistributed around a layer with several results is not read")
    plain = call.emitter.plain(result)
    target = (-1, steps, *(-1 if n is None else n for n in plain.shape[1:]))
    shape = (x.shape[0], steps, *plain.shape[1:])
    split = call.emitter.emit("Reshape", call.name, [plain], shape, plain.dtype, shape=target)
    call.emitter.mark_batch(split.name, split.shape, 0)
    return split


def _merged(call: Call, x: Value, inner: Sequence[int | None], name: str) -> Value:
    target = (-1, *(-1 if n is None else n for n in inner))
    merged = call.emitter.emit("Reshape", name, [call.emitter.plain(x)], (None, *inner), x.dtype, shape=target)
    call.emitter.unmark_batch(merged.name)
    return merged


def _masking(call: Call) -> Any:
    """Steps that hold nothing but the mask's value become 0; where that is 0, they are."""
    value = call.operation.mask_value
    if not value:
        return call.x

    def kept(x: Any) -> Any:
        return ops.where(ops.any(ops.not_equal(x, value), axis=-1, keepdims=True), x, 0.0)

    return call.reader.open(kept, call.name, (call.x,), {}, call.operation)


LAYERS: Mapping[type, Rule] = {
    keras.layers.TimeDistributed: _time_distributed,
    keras.layers.Masking: _masking,
}
