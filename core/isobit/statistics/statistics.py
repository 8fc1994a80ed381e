"""Statistics: what passes over data leave behind. Small, mergeable, and enough for every decision that follows."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from isobit.errors import DataError
from isobit.files import check_unpacked_size, write_atomically
from isobit.graph.sites import Input, Site, Tensor, site_key, site_of
from isobit.statistics.channel_range import ChannelRange
from isobit.statistics.histogram import Histogram as Histogram
from isobit.statistics.layer_rows.rows import Rows
from isobit.statistics.min_max import MinMax as MinMax
from isobit.statistics.moments import Moments as Moments
from isobit.statistics.observer import Observer, Request, Stage
from isobit.statistics.reducer import Reducer, kind_of, reducer_of

_FORMAT = 2


@dataclass(frozen=True)
class Observed:
    """What was observed: the tensor at `site`, before or after its quantizer, by a reducer of this kind and settings.

    `model` is ``"float"``, or says which quantized copy of the model was run.
    """

    model: str
    site: Tensor | Input
    stage: Stage
    kind: str
    settings: tuple[Any, ...] = ()


@dataclass(eq=False)
class Seen:
    """What a reducer has seen of a site: so many batches from the start of the data, and whether these are all."""

    site: Site
    reducer: Any  # a Reducer, or the observer of a technique from elsewhere
    stage: Stage = "before"
    batches: int = 0
    complete: bool = False

    @property
    def request(self) -> Request:
        """The request by which a model feeds it further batches."""
        assert isinstance(self.site, Tensor | Input)  # constants are not observed
        return Request(self.site, self.reducer, self.stage)


class Statistics(Mapping[Site, Reducer]):
    """The ranges of a float model's tensors, by site, and what else was observed of the model for techniques.

    `model` is the fingerprint of the float model, edits included; an empty text where it is not known. `first_batch` is
    that of the batch with which the data began, where a pass can be gone on with.
    """

    def __init__(self, items: Mapping[Site, Reducer] | None = None, batches: int = 0, model: str = "") -> None:
        self._ranges = {
            site: Seen(site, reducer, batches=batches, complete=batches > 0) for site, reducer in (items or {}).items()
        }
        self._batches = batches  # the count for statistics without sites
        self.further: dict[Observed, Seen] = {}
        self.model = model
        self.first_batch = ""

    def __getitem__(self, site: Site) -> Reducer:
        reducer: Reducer = self._ranges[site].reducer
        return reducer

    def __iter__(self) -> Iterator[Site]:
        return iter(self._ranges)

    def __len__(self) -> int:
        return len(self._ranges)

    @property
    def batches(self) -> int:
        """How many batches the ranges cover."""
        return min((seen.batches for seen in self._ranges.values()), default=self._batches)

    def set_ranges(self, blank: Statistics) -> None:
        """Let the ranges be those of `blank`; what is there of the same sites, kinds and settings stays."""
        if not self.same_ranges(blank):
            there = {site: seen for site, seen in self._ranges.items() if _is_like(seen, blank._ranges.get(site))}
            self._ranges, self._batches = {**blank._ranges, **there}, 0

    @property
    def is_complete(self) -> bool:
        """Whether the ranges cover all of the data."""
        return all(seen.complete for seen in self._ranges.values())

    def histogram(self, site: Site) -> Histogram:
        """The histogram of a site; DataError if the site was not observed."""
        reducer = self.get(site)
        if not isinstance(reducer, Histogram) or reducer.is_empty:
            raise DataError(f"no values of {str(site)!r} were seen: calibrate first, with data that reaches it")
        return reducer

    def channels(self, site: Site) -> ChannelRange:
        """The ranges of a site's channels; DataError if they were not observed."""
        reducer = self.get(site)
        if not isinstance(reducer, ChannelRange) or reducer.is_empty:
            raise DataError(f"no channels of {str(site)!r} were seen: calibrate first, with data that reaches it")
        return reducer

    def requests(self) -> list[Request]:
        """What a model is asked to observe so that the ranges are fed."""
        return [seen.request for seen in self.ranges()]

    def ranges(self) -> list[Seen]:
        """What was seen for the ranges of tensors."""
        return [seen for seen in self._ranges.values() if isinstance(seen.site, Tensor | Input)]

    def same_ranges(self, other: Statistics) -> bool:
        """Whether the ranges are of the same sites, by reducers of the same kinds and settings."""

        def described(statistics: Statistics) -> dict[Site, Any]:
            return {site: (kind_of(reducer), _settings(reducer)) for site, reducer in statistics.items()}

        return described(self) == described(other)

    def seen(self, model: str, request: Request) -> Seen:
        """What was observed for a request to a model so far, or the request's observer with nothing seen."""
        key = observed(model, request)
        return self.further.setdefault(key, Seen(request.site, request.observer, request.stage))

    def without(self, tensors: Collection[str]) -> Statistics:
        """What was observed of the float model's other tensors, once these have other values."""
        rest = Statistics()
        rest._ranges = {
            site: seen
            for site, seen in self._ranges.items()
            if isinstance(site, Tensor) and site.name not in tensors and seen.complete
        }
        rest.further = {
            key: seen
            for key, seen in self.further.items()
            if key.model == "float" and isinstance(key.site, Tensor) and key.site.name not in tensors and seen.complete
        }
        return rest

    def forget_rows(self) -> None:
        """Let go the rows that techniques observed: they are large, and only such a technique would read them again."""
        self.further = {key: seen for key, seen in self.further.items() if not isinstance(seen.reducer, Rows)}

    def check_adds(self, other: Statistics) -> None:
        """Raise DataError when the ranges of `other` are of other sites, kinds or settings."""
        if self._ranges.keys() != other._ranges.keys():
            site_of_one = next(iter(self._ranges.keys() ^ other._ranges.keys()))
            raise DataError(f"the statistics are of different sites: {str(site_of_one)!r} is in one of them only")
        for site, reducer in self.items():
            other_reducer = other[site]
            if type(other_reducer) is not type(reducer):
                kinds = f"{type(reducer).__name__} and {type(other_reducer).__name__}"
                raise DataError(f"the statistics of {str(site)!r} are of different kinds: {kinds}")
            if isinstance(reducer, Histogram) and isinstance(other_reducer, Histogram):
                reducer.check_limit(other_reducer)

    def merge(self, other: Statistics) -> None:
        """Add the ranges of a later part of the data. What else was observed does not add up, and is dropped."""
        self.check_adds(other)
        for site, reducer in self.items():
            reducer.merge(other[site])  # type: ignore[arg-type]
        self._batches += other._batches
        for site, seen in self._ranges.items():
            seen.batches += other._ranges[site].batches
        self.further.clear()

    # --- files -----------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write to an ``.npz`` file (no pickle), whole or not at all."""
        save_parts(path, [self])

    def to_bytes(self) -> bytes:
        """The content of the file that `save` writes."""
        return _pack([self])

    @classmethod
    def load(cls, path: str | Path, model: str = "") -> Statistics:
        """Read what `save` wrote, of the model with this fingerprint where a file holds several.

        Raises DataError that names the file, also where it is of another model.
        """
        return _of_model(load_parts(path), model, str(path))

    @classmethod
    def of_files(cls, paths: Sequence[str | PathLike[str]], needed: Iterable[Site] = (), model: str = "") -> Statistics:
        """The sum of the files' statistics, of parts of the data in this order.

        Raises DataError that names the file which is none, is of another model, lacks a `needed` site, or does not add
        to the first.
        """
        total, needed = cls(), list(needed)
        for index, path in enumerate([fspath(path) for path in paths]):
            part = cls.load(path, model)
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
        return _of_model(_unpack(source, path), "", path)


def _is_like(seen: Seen, other: Seen | None) -> bool:
    """Whether two reducers are of one kind and settings."""
    if other is None:
        return False
    return (kind_of(seen.reducer), _settings(seen.reducer)) == (kind_of(other.reducer), _settings(other.reducer))


def observed(model: str, request: Request) -> Observed:
    """What a request asks of a model, as a key."""
    try:
        kind = kind_of(request.observer)
    except DataError:  # an observer of a plug-in has no kind: its key is the object itself
        return Observed(model, request.site, request.stage, type(request.observer).__name__, (id(request.observer),))
    return Observed(model, request.site, request.stage, kind, _settings(request.observer))


def _settings(reducer: Observer | Reducer) -> tuple[Any, ...]:
    settings: tuple[Any, ...] = getattr(reducer, "settings", ())
    return settings


def save_parts(path: str | Path, parts: Sequence[Statistics], *, resumable: bool = False) -> None:
    """Write the statistics of several models, or of several states of one, to a file.

    `resumable` says that a pass goes on from it: the file then knows with which batch the data began.
    """
    with write_atomically(Path(path)) as temporary:
        temporary.write_bytes(_pack(parts, resumable))


def load_parts(path: str | Path) -> list[Statistics]:
    """Read what `save_parts` wrote. Raises DataError that names the file."""
    try:
        with open(path, "rb") as file:
            return _unpack(file, str(path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # a null byte in the path
        raise DataError(f"{str(path)!r}: cannot be read: {error}") from error


def _of_model(parts: Sequence[Statistics], model: str, path: str) -> Statistics:
    """The part of the model with this fingerprint; of parts that do not say it, or for an unknown one, the first."""
    fitting = [part for part in parts if not model or part.model in ("", model)]
    if not fitting:
        raise DataError(
            f"{path}: its statistics are of another model, or of the model before other techniques were applied: "
            "apply the same ones in the same order first"
        )
    return fitting[0]


def _pack(parts: Sequence[Statistics], resumable: bool = False) -> bytes:
    arrays: dict[str, NDArray[Any]] = {}
    described: list[dict[str, Any]] = []

    def add(reducer: Reducer) -> str:
        prefix = f"{len(described)}.{len(index) + len(further)}"
        arrays.update({f"{prefix}.{name}": array for name, array in reducer.arrays().items()})
        return kind_of(reducer)

    for part in parts:
        index: list[Any] = []
        further: list[Any] = []
        for site, reducer in part.items():
            index.append([*site_key(site), add(reducer)])
        for key, seen in part.further.items():
            if seen.batches:
                progress = [seen.batches, seen.complete]
                further.append([key.model, *site_key(key.site), key.stage, add(seen.reducer), *progress])
        totals: dict[str, Any] = {"batches": part.batches, "complete": part.is_complete}
        if resumable:
            totals["first_batch"] = part.first_batch
        described.append({"model": part.model, **totals, "sites": index, "further": further})
    header = json.dumps({"format": "isobit statistics", "version": _FORMAT, "parts": described})
    arrays["header"] = np.frombuffer(header.encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _unpack(source: str | Path | IO[bytes], path: str) -> list[Statistics]:
    try:
        with np.load(source, allow_pickle=False) as file:
            check_unpacked_size(file.zip)
            header = json.loads(file["header"].tobytes())
            if header.get("format") != "isobit statistics" or header.get("version") != _FORMAT:
                raise DataError(f"{path}: not a statistics file of version {_FORMAT}")
            arrays: dict[tuple[str, str], dict[str, NDArray[Any]]] = {}
            for key in file.files:
                part_number, _, array_key = key.partition(".")
                number, _, name = array_key.partition(".")
                array = arrays.setdefault((part_number, number), {})[name] = file[key]
                if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
                    raise DataError(f"{path}: {key}: must be an array of numbers")
            parts = [_part(record, str(number), arrays) for number, record in enumerate(header["parts"])]
            if not parts:
                raise DataError(f"{path}: a statistics file without statistics")
            return parts
    except DataError:
        raise
    except Exception as error:  # a damaged archive fails in many ways: zipfile, zlib, json, NumPy
        raise DataError(f"{path}: not a statistics file: {error}") from error


def _part(
    record: Mapping[str, Any], part: str, arrays: Mapping[tuple[str, str], dict[str, NDArray[Any]]]
) -> Statistics:
    def reducer(kind: str, number: int) -> Reducer:
        return reducer_of(kind, arrays.get((part, str(number)), {}))

    sites = record["sites"]
    items = {
        site_of(kind, name, position): reducer(reducer_kind, number)
        for number, (kind, name, position, reducer_kind) in enumerate(sites)
    }
    statistics = Statistics(items, int(record.get("batches", 0)), str(record.get("model", "")))
    statistics.first_batch = str(record.get("first_batch", ""))
    for number, row in enumerate(record.get("further", ()), len(sites)):
        model, kind, name, position, stage, reducer_kind, batches, complete = row
        site = site_of(kind, name, position)
        seen = Seen(site, reducer(reducer_kind, number), stage, int(batches), bool(complete))
        statistics.further[observed(str(model), seen.request)] = seen
    for seen in statistics._ranges.values():
        seen.complete = bool(record.get("complete", True))
    return statistics
