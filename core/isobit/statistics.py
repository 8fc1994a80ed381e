"""Statistics: what a pass over data leaves behind. Small, mergeable, and enough for every decision that follows."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from isobit.bounds import MinMax as MinMax
from isobit.channel_range import ChannelRange
from isobit.errors import DataError
from isobit.files import write_atomically
from isobit.gram import Gram
from isobit.histogram import Histogram as Histogram
from isobit.rows import Rows
from isobit.sites import Input, Site, Tensor, site_key, site_of

if TYPE_CHECKING:
    from isobit.backend import Request

_FORMAT = 1


class Moments:
    """Mean and mean square of each channel, in float64, added up batch by batch."""

    def __init__(self) -> None:
        self.count = 0
        self.total: NDArray[np.float64] = np.zeros(0)
        self.total_square: NDArray[np.float64] = np.zeros(0)

    def update(self, batch: NDArray[np.float32], channel_axis: int | None = None) -> None:
        """Add a batch; without a channel axis the whole tensor is one channel."""
        values = np.asarray(batch, np.float64)
        if channel_axis is None:
            values = values.reshape(1, -1)
        else:
            values = np.moveaxis(values, channel_axis, 0).reshape(values.shape[channel_axis], -1)
        self._add(values.shape[1], values.sum(axis=1), np.square(values).sum(axis=1))

    def blank(self) -> Moments:
        """One that has seen nothing."""
        return Moments()

    def merge(self, other: Moments) -> None:
        """Add the sums of a later part."""
        if other.count:
            self._add(other.count, other.total, other.total_square)

    def _add(self, count: int, total: NDArray[np.float64], square: NDArray[np.float64]) -> None:
        if self.count and total.shape != self.total.shape:
            raise DataError(f"moments of {self.total.size} and {total.size} channels do not add up")
        self.total = self.total + total if self.count else total
        self.total_square = self.total_square + square if self.count else square
        self.count += count

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean of each channel."""
        return self.total / self.count

    @property
    def variance(self) -> NDArray[np.float64]:
        """Population variance of each channel."""
        return np.maximum(self.total_square / self.count - np.square(self.mean), 0.0)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything, as arrays."""
        return {"count": np.array([self.count], np.int64), "total": self.total, "square": self.total_square}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Moments:
        """The inverse of `arrays`."""
        found = cls()
        found.count = int(arrays["count"][0])
        found.total, found.total_square = arrays["total"], arrays["square"]
        return found


Reducer = Histogram | MinMax | Moments | ChannelRange | Rows | Gram

_KINDS: dict[str, type[Reducer]] = {
    "histogram": Histogram,
    "minmax": MinMax,
    "moments": Moments,
    "channels": ChannelRange,
    "rows": Rows,
    "gram": Gram,
}


class Statistics(Mapping[Site, Reducer]):
    """The reducers of one pass over `batches` batches, by site."""

    def __init__(self, items: Mapping[Site, Reducer] | None = None, batches: int = 0) -> None:
        self._items: dict[Site, Reducer] = dict(items or {})
        self.batches = batches

    def __getitem__(self, site: Site) -> Reducer:
        return self._items[site]

    def __iter__(self) -> Iterator[Site]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def histogram(self, site: Site) -> Histogram:
        """The histogram of a site; DataError if the site was not observed."""
        found = self._items.get(site)
        if not isinstance(found, Histogram) or found.is_empty:
            raise DataError(f"no values of {str(site)!r} were seen: calibrate first, with data that reaches it")
        return found

    def channels(self, site: Site) -> ChannelRange:
        """The ranges of a site's channels; DataError if they were not observed."""
        found = self._items.get(site)
        if not isinstance(found, ChannelRange) or found.is_empty:
            raise DataError(f"no channels of {str(site)!r} were seen: calibrate first, with data that reaches it")
        return found

    def blank(self) -> Statistics:
        """Empty reducers of the same kinds for the same sites. Raises DataError for rows, which know their place."""
        found: dict[Site, Reducer] = {}
        for site, reducer in self._items.items():
            if isinstance(reducer, Rows | Gram):
                raise DataError(f"the statistics of {str(site)!r} are not collected in parts of any order")
            found[site] = reducer.blank()
        return Statistics(found)

    def requests(self) -> list[Request]:
        """What a model is asked to observe so that these reducers are fed."""
        from isobit.backend import Request

        return [
            Request(site, reducer)
            for site, reducer in self._items.items()
            if isinstance(site, Tensor | Input) and not isinstance(reducer, Gram)
        ]

    def merge(self, other: Statistics) -> None:
        """Add the statistics of a later part of the data."""
        if self._items.keys() != other._items.keys():
            odd = next(iter(self._items.keys() ^ other._items.keys()))
            raise DataError(f"the statistics are of different sites: {str(odd)!r} is in one of them only")
        for site, reducer in self._items.items():
            theirs = other._items[site]
            if type(theirs) is not type(reducer):
                kinds = f"{type(reducer).__name__} and {type(theirs).__name__}"
                raise DataError(f"the statistics of {str(site)!r} are of different kinds: {kinds}")
            if isinstance(reducer, Histogram) and isinstance(theirs, Histogram):
                reducer.check_limit(theirs)
        for site, reducer in self._items.items():
            reducer.merge(other._items[site])  # type: ignore[arg-type]
        self.batches += other.batches

    def save(self, path: str | Path) -> None:
        """Write to an ``.npz`` file (no pickle), whole or not at all."""
        with write_atomically(Path(path)) as temporary:
            temporary.write_bytes(self.to_bytes())

    def to_bytes(self) -> bytes:
        """The content of the file that `save` writes."""
        arrays, index = {}, []
        for number, (site, reducer) in enumerate(self._items.items()):
            kind = next(name for name, cls in _KINDS.items() if isinstance(reducer, cls))
            index.append([*site_key(site), kind])
            arrays.update({f"{number}.{name}": array for name, array in reducer.arrays().items()})
        header = json.dumps(
            {"format": "isobit statistics", "version": _FORMAT, "batches": self.batches, "sites": index}
        )
        arrays["header"] = np.frombuffer(header.encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read what `save` wrote. Raises DataError that names the file."""
        try:
            with open(path, "rb") as file:
                return cls.from_file(file, str(path))
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error

    @classmethod
    def of_files(cls, paths: Sequence[str | PathLike[str]], needed: Iterable[Site] = ()) -> Statistics:
        """The sum of the files' statistics, of parts of the data in this order.

        Raises DataError that names the file which is none, lacks a `needed` site, or does not add to the first.
        """
        total, needed = cls(), list(needed)
        for index, path in enumerate([fspath(path) for path in paths]):
            part = cls.load(path)
            missing = next((site for site in needed if site not in part), None)
            if missing is not None:
                raise DataError(f"{path}: has no statistics of {str(missing)!r}: of another model or plan")
            if not index:
                total = part
                continue
            try:
                total.merge(part)
            except DataError as error:
                raise DataError(f"{path}: does not add to {fspath(paths[0])}: {error}") from error
        return total

    @classmethod
    def from_bytes(cls, content: bytes) -> Statistics:
        """The inverse of `to_bytes`."""
        return cls.from_file(io.BytesIO(content), "statistics")

    @classmethod
    def from_file(cls, source: str | Path | IO[bytes], path: str) -> Statistics:
        """Read an open file or a path; `path` names it in errors."""
        try:
            with np.load(source, allow_pickle=False) as file:
                header = json.loads(file["header"].tobytes())
                if header.get("format") != "isobit statistics" or header.get("version") != _FORMAT:
                    raise DataError(f"{path}: not a statistics file of version {_FORMAT}")
                batches = int(header["batches"])
                items: dict[Site, Reducer] = {}
                for number, (kind, name, position, reducer) in enumerate(header["sites"]):
                    prefix = f"{number}."
                    arrays = {key.removeprefix(prefix): file[key] for key in file.files if key.startswith(prefix)}
                    items[site_of(kind, name, position)] = _KINDS[reducer].from_arrays(arrays)
        except DataError:
            raise
        except Exception as error:  # a damaged archive fails in many ways: zipfile, zlib, json, NumPy
            raise DataError(f"{path}: not a statistics file: {error}") from error
        return cls(items, batches)
