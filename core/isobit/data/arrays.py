"""NumPy arrays of what users have: arrays, tensors of any framework, nested lists of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.errors import DataError


def is_array(value: Any) -> bool:
    """Whether a value is an array or a tensor of any framework."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def to_numpy(value: Any) -> NDArray[Any]:
    """A NumPy array of an array, a tensor of any framework (also on a device), or a nested list of numbers."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # which NumPy does not have
            value = value.float()
    try:
        array = np.asarray(value.numpy() if hasattr(value, "numpy") else value)
    except ValueError as error:  # rows of different lengths
        raise DataError(f"cannot make an array of a {type(value).__name__}: {error}") from error
    if array.dtype == object:
        raise DataError(f"cannot make an array of a {type(value).__name__}: its parts have different shapes or types")
    return array
