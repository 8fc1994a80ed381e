"""Reducers: the observers whose results merge and are kept in files. Requests for them travel as bytes."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.errors import DataError
from isobit.graph.sites import Input, Tensor, site_key, site_of
from isobit.statistics.channel_means import ChannelMeans
from isobit.statistics.channel_moments import ChannelMoments
from isobit.statistics.channel_range import ChannelRange
from isobit.statistics.histogram import Histogram
from isobit.statistics.layer_rows.gram import Gram
from isobit.statistics.layer_rows.rows import Rows
from isobit.statistics.min_max import MinMax
from isobit.statistics.moments import Moments
from isobit.statistics.observer import Request

Reducer = Histogram | MinMax | Moments | ChannelMeans | ChannelRange | ChannelMoments | Rows | Gram

_KINDS: Mapping[str, type[Reducer]] = {
    "histogram": Histogram,
    "minmax": MinMax,
    "moments": Moments,
    "channel means": ChannelMeans,
    "channels": ChannelRange,
    "channel moments": ChannelMoments,
    "rows": Rows,
    "gram": Gram,
}


def kind_of(reducer: object) -> str:
    """The name of a reducer's class in files. Raises DataError for an observer that is no reducer of isobit's."""
    kind = next((name for name, cls in _KINDS.items() if isinstance(reducer, cls)), None)
    if kind is None:
        raise DataError(
            f"the result of a {type(reducer).__name__} cannot be kept or merged: observe with a reducer of "
            f"isobit.statistics.statistics ({', '.join(cls.__name__ for cls in _KINDS.values())}), in one process"
        )
    return kind


def reducer_of(kind: str, arrays: Mapping[str, NDArray[Any]]) -> Reducer:
    """The reducer of a kind that a file holds as `arrays`."""
    return _KINDS[kind].from_arrays(arrays)


def merge(reducer: object, later: object) -> None:
    """Add what was seen of a later part of the data. Raises DataError for another kind or other settings."""
    if kind_of(reducer) != kind_of(later):
        raise DataError(f"a {type(reducer).__name__} and a {type(later).__name__} do not add up")
    reducer.merge(later)  # type: ignore[attr-defined]


def requests_to_bytes(requests: Iterable[Request]) -> bytes:
    """Requests with their observers, for another process; `requests_from_bytes` reads them. No pickle."""
    index, arrays = [], {}
    for number, request in enumerate(requests):
        kind = kind_of(request.observer)
        index.append([*site_key(request.site), request.stage, kind])
        parts: Mapping[str, NDArray[Any]] = request.observer.arrays()  # type: ignore[union-attr]
        arrays.update({f"{number}.{name}": array for name, array in parts.items()})
    arrays["index"] = np.frombuffer(json.dumps(index).encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def requests_from_bytes(content: bytes) -> list[Request]:
    """The inverse of `requests_to_bytes`."""
    requests = []
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        by_number: dict[str, dict[str, NDArray[Any]]] = {}
        for key in file.files:
            number, _, name = key.partition(".")
            by_number.setdefault(number, {})[name] = file[key]
        for number, (kind, name, position, stage, reducer) in enumerate(json.loads(by_number["index"][""].tobytes())):
            site = site_of(kind, name, position)
            assert isinstance(site, Tensor | Input)  # constants are not observed
            observer: Any = reducer_of(reducer, by_number.get(str(number), {}))
            requests.append(Request(site, observer, stage))
    return requests
