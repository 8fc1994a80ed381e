"""JSON files read with care: UTF-8, no name twice, and fields taken one by one with errors that say where."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.errors import EncodingError, did_you_mean


def read_text(path: str | PathLike[str]) -> str:
    """The text of a file. Raises EncodingError when it cannot be read or is not UTF-8."""
    try:
        return Path(path).read_text("utf-8")
    except OSError as error:
        raise EncodingError(f"cannot read encodings file {fspath(path)}: {error.strerror or error}") from error
    except ValueError as error:  # not UTF-8, or a path with a null byte
        raise EncodingError(f"cannot read encodings file {fspath(path)}: {error}") from error


def parse(text: str, where: str) -> Any:
    """The value of a JSON text; `where` names it in errors. Raises EncodingError."""
    if text.startswith("\ufeff"):
        raise EncodingError(f"{where}: begins with a byte order mark: save it as UTF-8 without one")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(items)
        if len(fields) < len(items):
            names = [name for name, _ in items]
            twice = next(name for name in names if names.count(name) > 1)
            raise EncodingError(f"{where}: {twice}: this name stands twice in one object")
        return fields

    try:
        return json.loads(text, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        raise EncodingError(f"{where}: not valid JSON: {error}") from error


class Fields:
    """An object of a file; `at` says where it stands. Whatever is wrong raises EncodingError."""

    def __init__(self, data: Any, at: str) -> None:
        if not isinstance(data, Mapping):
            raise EncodingError(f"{at}: must be an object, found {shown(data)}")
        self.data = data
        self.at = at

    def __contains__(self, key: str) -> bool:
        return key in self.data

    def error(self, key: str, problem: str) -> EncodingError:
        """The error that `key` has a problem."""
        return EncodingError(f"{self.at}: {key}: {problem}")

    def only(self, allowed: Sequence[str]) -> None:
        """Refuse fields that are not known: they might change the meaning."""
        for key in self.data:
            if key not in allowed:
                raise self.error(key, f"unknown field{did_you_mean(key, allowed)}")

    def require(self, key: str) -> Any:
        """The value of a field that must be there."""
        if key not in self.data:
            raise self.error(key, "this field is missing")
        return self.data[key]

    def text(self, key: str, allowed: Iterable[str] = ()) -> str:
        """A text that is not empty; one of `allowed`, if any are given."""
        value = self.require(key)
        if not isinstance(value, str) or not value:
            raise self.error(key, "must be a text")
        choices = list(allowed)
        if choices and value not in choices:
            near = did_you_mean(value, choices)
            raise self.error(key, f"unknown value {shown(value)}{near}; known are {', '.join(choices)}")
        return value

    def whole(self, key: str, low: int, high: int = 2**31 - 1) -> int:
        """A whole number of ``[low, high]``."""
        value = self.require(key)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            span = f"from {low}" if high == 2**31 - 1 else f"from {low} to {high}"
            raise self.error(key, f"must be a whole number {span}, found {shown(value)}")
        return value

    def flag(self, key: str) -> bool:
        """A truth value; the texts "True" and "False" in any case are taken too."""
        value = self.require(key)
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if not isinstance(value, bool):
            raise self.error(key, f'must be true or false (or "True" or "False"), found {shown(value)}')
        return value

    def array(self, key: str) -> list[Any]:
        """A list."""
        value = self.require(key)
        if not isinstance(value, list):
            raise self.error(key, "must be a list")
        return value

    def numbers(self, key: str) -> NDArray[np.float32]:
        """Numbers that float32 holds, as one array of the nesting that they have; NaN is left to the encoding."""
        array = self._array(key, "iuf", "numbers")
        values = array.astype(np.float64)
        if np.any(np.abs(values) > float(np.finfo(np.float32).max)):
            raise self.error(key, "out of the range of float32")
        return values.astype(np.float32)

    def wholes(self, key: str, *, floats: bool = False) -> NDArray[np.int32]:
        """Whole numbers of 32 bits; with `floats` also those written with a fraction of zero."""
        array = self._array(key, "iuf" if floats else "iu", "whole numbers")
        values = array.astype(np.float64)
        if not np.all(values == np.rint(values)):  # NaN is unequal to itself
            raise self.error(key, f"must be whole numbers, found {shown(self.data[key])}")
        if np.any((values < -(2**31)) | (values >= 2**31)):
            raise self.error(key, "out of the range of int32")
        return values.astype(np.int32)

    def _array(self, key: str, kinds: str, expected: str) -> NDArray[Any]:
        value = self.require(key)
        try:
            array = np.asarray(value)
        except (ValueError, OverflowError, RecursionError) as error:
            raise self.error(key, "rows of different lengths, or no numbers") from error
        if array.dtype.kind not in kinds or array.size == 0 or _holds_flag(value):
            raise self.error(key, f"must be {expected}, found {shown(value)}")
        return array


def shown(value: Any) -> str:
    """A value for the text of an error, cut where it is long."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _holds_flag(value: Any) -> bool:
    """Whether a nested list holds a truth value, which NumPy would take for a number."""
    if isinstance(value, list):
        return any(_holds_flag(item) for item in value)
    return isinstance(value, bool)
