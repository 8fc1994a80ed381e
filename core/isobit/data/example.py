"""One batch of the user's data, for frameworks that need an example to open a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.data.arrays import is_array, to_numpy
from isobit.data.loaders import require_batches
from isobit.errors import ModelError


def example_of(source: Any, inputs: Callable[[Any], Any] | None = None, samples: int = 2) -> Any:
    """One batch of `source` as `inputs` picks it, for frameworks that need one; None where that would lose it."""
    raw = _raw_example(source, samples)
    return raw if raw is None or inputs is None else inputs(raw)


def _raw_example(source: Any, samples: int) -> Any:
    if isinstance(source, Iterator) or source is None:
        return None
    require_batches(source)
    if is_array(source):
        return source[:samples] if np.ndim(source) else None
    if isinstance(source, Mapping):
        counts = Counter(len(value) for value in source.values() if np.ndim(value))
        total = counts.most_common(1)[0][0] if counts else 0
        return {name: v[:samples] if np.ndim(v) and len(v) == total else v for name, v in source.items()}
    if callable(source) and not hasattr(source, "__iter__"):
        source = source()
    return next(iter(source), None) if isinstance(source, Iterable) else None


def example_by_name(example: Any, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The arrays of an example batch by input: its own keys, or `names` in order. Raises ModelError."""
    if example is None:
        raise ModelError("the model does not say its shapes: pass example_inputs, one batch of the model's inputs")
    if isinstance(example, Mapping):
        return {str(name): to_numpy(array) for name, array in example.items()}
    arrays = example if isinstance(example, list | tuple) else [example]
    if len(names) < len(arrays):
        raise ModelError(f"the model takes {len(names)} inputs ({', '.join(names)}); the example has {len(arrays)}")
    return {name: to_numpy(array) for name, array in zip(names, arrays, strict=False)}
