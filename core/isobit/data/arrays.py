"""NumPy arrays of what users have: arrays, tensors of any framework, nested lists of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.errors import DataError


def is_array(value: Any) -> bool:
    """Whether a value is an array or a tensor of any framework."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def numpy_type(name: str) -> np.dtype[Any] | None:
    """The element type of arrays for an input of the type that a graph calls `name`; None where NumPy has none.

    Texts are objects. What NumPy has no numbers for may be registered there by another package, which no runtime reads.
    """
    if name == "string":
        return np.dtype(object)
    try:
        found = np.dtype("float32" if name == "bfloat16" else name)
    except TypeError:
        return None
    return found if found.isbuiltin == 1 else None


def to_numpy(value: Any) -> NDArray[Any]:
    """A NumPy array of an array, a tensor of any framework (also on a device), or a nested list of numbers or texts."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # which NumPy does not have
            value = value.float()
    try:
        array = np.asarray(value.numpy() if hasattr(value, "numpy") else value)
    except ValueError as error:  # rows of different lengths
        raise DataError(f"cannot make an array of a {type(value).__name__}: {error}") from error
    if array.dtype == object and not all(isinstance(item, str | bytes) for item in array.flat):
        kind = type(value).__name__
        way = "as RaggedTensor.to_tensor() does" if kind == "RaggedTensor" else "or pass them as batches of one"
        raise DataError(
            f"cannot make an array of a {kind}: its parts have different shapes or types; pad them to one length, {way}"
        )
    return array


def as_texts(array: NDArray[Any]) -> NDArray[np.object_]:
    """An array of `str`, as runtimes take it, of one of texts or of UTF-8 bytes."""
    texts = [item.decode("utf-8") if isinstance(item, bytes) else str(item) for item in array.flat]
    return np.array(texts, object).reshape(array.shape)
