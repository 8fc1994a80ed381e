"""Weights that are loaded into a calibrated simulator keep its grids, which may not fit them: each load says so."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.encodings.encoding import Encoding
from isobit.errors import GridWarning

#: A weight by its name, its grid, and its values, both canonical.
QuantizedWeight = tuple[str, Encoding, NDArray[Any]]

#: The rounding error, relative to the weight, may grow by this factor of its power (6 dB, one bit) unseen.
_GROWTH = 4.0
#: Below this share of the weight's power (-60 dB) nobody sees an error.
_UNSEEN = 1e-6


@contextmanager
def left_grids_noticed(weights: Callable[[], Iterable[QuantizedWeight]]) -> Iterator[None]:
    """Warn (`GridWarning`) where what is loaded inside has weights that their grids fit worse than those before.

    `weights` gives those with a grid as they are at the time. Too narrow grids clip, too wide ones round to few levels:
    both show in the error's power relative to the weight's. A weight with several readers may be given for
    each of them.
    """
    before = _errors(weights())
    yield
    if not before:
        return
    growth = {
        key: error / max(before[key], _UNSEEN)
        for key, error in _errors(weights()).items()
        if key in before and error > max(_GROWTH * before[key], _UNSEEN)
    }
    if growth:
        worst = max(growth, key=growth.__getitem__)
        warnings.warn(
            f"{len(growth)} of {len(before)} quantized weights do not fit their grids since other weights were loaded: "
            f"the rounding error of {worst[0]!r} is {10 * np.log10(growth[worst]):.0f} dB larger. Grids stay as they "
            "are when weights are loaded: calibrate(data) again makes new ones",
            GridWarning,
            stacklevel=4,  # the line that loads
        )


def _errors(weights: Iterable[QuantizedWeight]) -> dict[tuple[str, int], float]:
    """What rounding changes, by name and how often that name was given before: readers may have grids of their own."""
    times: Counter[str] = Counter()
    errors = {}
    for name, encoding, values in weights:
        errors[name, times[name]] = _error(encoding, values)
        times[name] += 1
    return errors


def _error(encoding: Encoding, values: NDArray[Any]) -> float:
    """The power of what rounding to the grid changes, relative to that of the values; 0 where all are 0."""
    power = float(np.vdot(values, values))
    change = encoding.fake_quantize(values) - values
    return float(np.vdot(change, change)) / power if power else 0.0
