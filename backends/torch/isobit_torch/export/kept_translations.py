"""The translations of torch.onnx.export, read once in a process.

Each export reads the sources of all its translations, some 500 functions, which is a third of its time for a small
network. They are the same each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


@contextmanager
def kept_translations() -> Iterator[None]:
    """Within it torch.onnx.export finds its translations as they were read first, where this version asks for them."""
    try:
        from torch.onnx._internal.exporter import _registration
    except ImportError:
        yield
        return
    reader = getattr(_registration, "onnxscript_apis", None)
    read = getattr(reader, "get_torchlib_ops", None)
    if read is None:
        yield
        return
    vars(reader)["get_torchlib_ops"] = lambda: list(_first(read))
    try:
        yield
    finally:
        vars(reader).pop("get_torchlib_ops", None)


@cache
def _first(read: Callable[[], list[Any]]) -> list[Any]:
    return read()
