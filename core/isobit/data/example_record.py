"""An example batch as data of a file: enough to open the same model with, and no more of the user's data than that."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.data.arrays import is_array, to_numpy
from isobit.errors import DataError

#: Whole numbers and truth values may decide what a model does (lengths, masks, tokens): so many of an array are kept.
_KEPT_NUMBERS = 4096

#: No example is larger; a damaged file may say so.
_LARGEST = 1 << 28

#: Of real numbers those of scalars and short vectors, which may be settings; more are signal and are drawn anew.
_KEPT_REALS = 16


def example_to_record(example: Any) -> Any:
    """A JSON-ready record of a nested batch; None where something in it is neither array nor container nor number.

    Long arrays are kept by their shape, type and range alone.
    """
    if dataclasses.is_dataclass(example) and not isinstance(example, type):  # a batch by the names of its fields
        example = {field.name: getattr(example, field.name) for field in dataclasses.fields(example)}
    try:
        return _to_record(example)
    except DataError:
        return None


def _to_record(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    if is_array(value):
        return {"array": _array_to_record(to_numpy(value))}
    if isinstance(value, Mapping):
        return {"dict": [[str(key), _to_record(item)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {"tuple" if isinstance(value, tuple) else "list": [_to_record(item) for item in value]}
    raise DataError(f"a {type(value).__name__} in an example batch is not kept")


def _array_to_record(array: NDArray[Any]) -> dict[str, Any]:
    record: dict[str, Any] = {"shape": list(array.shape), "dtype": str(array.dtype)}
    if array.dtype.kind not in "biuf":
        raise DataError(f"an array of {array.dtype} in an example batch is not kept")
    finite = array[np.isfinite(array)]
    if array.size <= (_KEPT_REALS if array.dtype.kind == "f" else _KEPT_NUMBERS) and finite.size == array.size:
        return {**record, "values": array.reshape(-1).tolist()}
    low, high = (finite.min().item(), finite.max().item()) if finite.size else (0, 1)
    return {**record, "range": [low, high]}


def example_from_record(record: Any) -> Any:
    """The batch of a record, its long arrays drawn evenly from their range, always alike. Raises DataError."""
    if record is None:
        return None
    try:
        return _from_record(record, np.random.default_rng(0))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, MemoryError) as error:
        raise DataError(f"the example batch is damaged: {error}") from error


def _from_record(record: Any, rng: np.random.Generator) -> Any:
    ((kind, content),) = record.items()
    if kind == "value":
        return content
    if kind == "array":
        return _array_from_record(content, rng)
    if kind == "dict":
        return {key: _from_record(item, rng) for key, item in content}
    if kind not in ("list", "tuple"):
        raise ValueError(f"unknown kind {kind!r}")
    items = [_from_record(item, rng) for item in content]
    return tuple(items) if kind == "tuple" else items


def _array_from_record(record: Mapping[str, Any], rng: np.random.Generator) -> NDArray[Any]:
    shape, dtype = tuple(record["shape"]), np.dtype(record["dtype"])
    if math.prod(shape) > _LARGEST:
        raise ValueError(f"an array of shape {shape}")
    if "values" in record:
        return np.array(record["values"], dtype).reshape(shape)
    low, high = record["range"]
    if dtype.kind == "f":
        return rng.uniform(low, high, shape).astype(dtype)
    return rng.integers(int(low), int(high), shape, dtype if dtype.kind != "b" else np.int64, endpoint=True).astype(
        dtype
    )
