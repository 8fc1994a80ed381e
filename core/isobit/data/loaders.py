"""What a loader says of itself before it is asked for a batch: that it ends, and that it gives batches."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

from isobit.data.arrays import is_array
from isobit.errors import DataError


def require_batches(source: Any) -> None:
    """Raise DataError for what gives no batches: a path, a number, an endless loader, a set of single samples."""
    if is_array(source) and not hasattr(source, "__getitem__") and not hasattr(source, "numpy"):
        raise DataError(f"the data is a {type(source).__name__}, which has no rows to take: pass a dense array")
    if is_array(source) or isinstance(source, Mapping) or source is None:
        return
    if isinstance(source, str | bytes | PathLike):
        raise DataError(
            f"the data is a text, {str(source)[:80]!r}, and not what it names: numpy.load reads a file of arrays, and "
            "the command `isobit quantize MODEL --data PATH` reads files and folders"
        )
    if _holds_samples(source):
        raise DataError(
            f"the data is a {type(source).__name__}, which holds samples one by one: pass a loader of batches, such as "
            "torch.utils.data.DataLoader(data, batch_size=32)"
        )
    if _is_endless(source):
        raise DataError(
            "the data has no end: pass a part of it, for example itertools.islice(data, 64) or data.take(64)"
        )

    if not callable(source) and not hasattr(source, "__iter__") and not hasattr(source, "__getitem__"):
        kind = type(source).__name__
        raise DataError(f"data must be batches, an array, a dict of arrays or a callable, not {kind}")


def _holds_samples(source: Any) -> bool:
    """Whether it is read by number and no more, as map-style data sets of PyTorch are."""
    return (
        hasattr(source, "__getitem__")
        and hasattr(source, "__len__")
        and not hasattr(source, "__iter__")
        and not isinstance(source, type)
    )


def _is_endless(source: Any) -> bool:
    try:
        endless = getattr(source, "num_batches", 0) is None  # as a keras.utils.PyDataset says it
        if hasattr(source, "__len__"):
            len(source)
    except NotImplementedError:
        return True
    except TypeError as error:  # as a tf.data.Dataset says it
        return "infinite" in str(error)
    return endless
