"""The user's own model, as it was given, run on a batch to be compared with what was opened of it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from isobit.backend import Batch
from isobit.errors import ModelError
from isobit_tensorflow.axes import first_axes


@dataclass(frozen=True, eq=False)
class GivenModel:
    """A Keras model and how the names of the graph lie in it.

    `inputs` and `outputs` are structures of names. `tensors` are the model's own by the name of the graph's tensor,
    each with whether the graph has its channels first. `checksums` are those of its variables when it was opened.
    """

    model: keras.Model
    inputs: Any
    outputs: Any
    tensors: Mapping[str, tuple[keras.KerasTensor, bool]]
    checksums: Sequence[int]

    @classmethod
    def of(
        cls, model: keras.Model, inputs: Any, outputs: Any, tensors: Mapping[str, tuple[keras.KerasTensor, bool]]
    ) -> GivenModel:
        """The model as it is now."""
        return cls(model, inputs, outputs, tensors, checksums(model))

    def run(self, batch: Batch, names: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
        """Outputs by name in inference; with `names`, those tensors of the graph that the model has itself.

        Raises ModelError where the model fails, or has been trained since it was opened.
        """
        if tuple(checksums(self.model)) != tuple(self.checksums):
            raise ModelError("its weights have changed since it was opened")
        arguments = keras.tree.map_structure(lambda name: batch[name], self.inputs)
        try:
            if names:
                present = {name: self.tensors[name] for name in names if name in self.tensors}
                if not present:
                    return {}
                inner = keras.Model(self.model.inputs, [tensor for tensor, _ in present.values()])
                results = keras.tree.flatten(inner(keras.tree.flatten(arguments), training=False))
                return {
                    name: _first(as_array(value)) if last else as_array(value)
                    for (name, (_, last)), value in zip(present.items(), results, strict=True)
                }
            outputs = keras.tree.flatten(self.model(arguments, training=False))
        except Exception as error:  # whatever the user's layers raise
            raise ModelError(f"Keras does not run it: {str(error).strip().splitlines()[0]}") from error
        return {
            name: self._rounded(as_array(value))
            for name, value in zip(keras.tree.flatten(self.outputs), outputs, strict=True)
        }

    def _rounded(self, values: NDArray[Any]) -> NDArray[Any]:
        """The values in the type that the model computes in, which tells how near another order of sums comes."""
        layers = [layer for layer in self.model._flatten_layers() if not isinstance(layer, keras.layers.InputLayer)]
        kinds = {layer.compute_dtype for layer in layers}
        kinds |= {str(tensor.dtype) for tensor, _ in self.tensors.values()}
        is_half = not kinds.isdisjoint(("float16", "bfloat16")) and values.dtype == np.float32
        return values.astype(np.float16) if is_half and np.abs(values).max(initial=0) < _LARGEST_HALF else values


#: Values above it are infinite in float16.
_LARGEST_HALF = 65_504


def checksums(model: keras.Model) -> list[int]:
    """Of each variable."""
    return [zlib.crc32(np.ascontiguousarray(variable.numpy()).tobytes()) for variable in model.variables]


def as_array(value: Any) -> NDArray[Any]:
    """A tensor in NumPy, which has no bfloat16."""
    narrow = "bfloat16" in str(value.dtype)
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(value, "float32") if narrow else value))


def _first(values: NDArray[Any]) -> NDArray[Any]:
    """The channels at axis 1."""
    return values.transpose(first_axes(values.ndim))
