"""Rows: a bounded choice of the rows that a layer's weight multiplies, each with its sample and position."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from isobit.errors import DataError
from isobit.statistics.layer_rows.patches import Indices, Patches

#: Rows kept of each layer, at most.
ROW_LIMIT = 16384

# Steps of the R2 sequence (Roberts 2018, "The Unreasonable Effectiveness of Quasirandom Sequences"), times 2**32: keys
# of neighbouring positions and samples spread evenly, so that a threshold keeps a well spread choice of both.
_BY_POSITION, _BY_SAMPLE = np.uint64(3242174889), np.uint64(2447445414)
_KEYS = 1 << 32


class Rows:
    """Keeps at most `limit` rows of a layer's input, chosen by their stamp (sample, position) alone.

    Samples are counted through the data, from `first` on: two passes over the same data, or two models, keep the same
    stamps, however the data is cut into batches. The choice is thinned by halves as data comes, and what is left
    depends on all of the data and not on the order of thinning.
    """

    wants: Literal["tensor"] = "tensor"

    def __init__(self, patches: Patches, limit: int = ROW_LIMIT, first: int = 0) -> None:
        if limit < 1:
            raise DataError(f"at least one row is kept, not {limit}")
        self.patches = patches
        self.limit = limit
        self.first = first
        self.samples = 0
        self.level = 0  # rows with keys below 2**(32 - level) are kept
        self._sample: list[Indices] = []
        self._position: list[Indices] = []
        self._rows: list[NDArray[np.float32]] = []

    def update(self, batch: NDArray[np.float32], channel_axis: int | None = None) -> None:
        """Add the layer's input of one batch, in canonical layout; axis 0 holds the samples."""
        samples = self.patches.samples(np.asarray(batch, np.float32))
        count = samples.shape[0]
        positions = int(np.prod(self.patches.output_size(samples.shape), dtype=np.int64))
        sample = np.repeat(np.arange(count, dtype=np.int64), positions)
        position = np.tile(np.arange(positions, dtype=np.int64), count)
        keys = _keys(sample + self.first + self.samples, position)
        chosen = np.flatnonzero(keys < self._threshold)
        while len(self) + chosen.size > self.limit and self.level < 32:
            self._thin(self.level + 1)
            chosen = chosen[keys[chosen] < self._threshold]
        sample, position = sample[chosen], position[chosen]
        if chosen.size:
            self._rows.append(self.patches.gather(samples, sample, position))
            self._sample.append(sample + self.first + self.samples)
            self._position.append(position)
        self.samples += count

    @property
    def settings(self) -> tuple[Any, ...]:
        """What two of them must have alike to add up."""
        return (self.limit, self.patches)

    def blank(self) -> Rows:
        """One that has seen nothing, for the same samples."""
        return Rows(self.patches, self.limit, self.first)

    def merge(self, other: Rows) -> None:
        """Append the rows of the part of the data that follows; DataError for another part or another layer."""
        if (self.patches, self.limit) != (other.patches, other.limit):
            raise DataError("rows of different layers, or with different limits, do not add up")
        if other.first != self.first + self.samples:
            raise DataError(
                f"rows are merged in the order of the data: these end before sample {self.first + self.samples}, "
                f"and the others begin with {other.first}"
            )
        self._sample += other._sample
        self._position += other._position
        self._rows += other._rows
        self.samples += other.samples
        self._thin(max(self.level, other.level))
        while len(self) > self.limit and self.level < 32:
            self._thin(self.level + 1)

    def __len__(self) -> int:
        return sum(len(part) for part in self._rows)

    @property
    def _threshold(self) -> int:
        return _KEYS >> self.level

    def _thin(self, level: int) -> None:
        self.level = level
        for i, (sample, position) in enumerate(zip(self._sample, self._position, strict=True)):
            is_kept = _keys(sample, position) < self._threshold
            if not is_kept.all():
                parts = self._sample[i][is_kept], self._position[i][is_kept], self._rows[i][is_kept]
                self._sample[i], self._position[i], self._rows[i] = parts

    @property
    def stamps(self) -> NDArray[np.int64]:
        """(rows, 2): sample and position of every row, in the order of the data."""
        empty = np.zeros(0, np.int64)
        return np.stack([np.concatenate([empty, *self._sample]), np.concatenate([empty, *self._position])], 1)

    @property
    def values(self) -> NDArray[np.float32]:
        """(rows, groups, columns), in the order of `stamps`."""
        if len(self._rows) != 1:  # joined on the first call, and kept joined
            empty = np.zeros((0, self.patches.groups, self.patches.columns), np.float32)
            self._rows = [np.concatenate([empty, *self._rows])]
            self._sample, self._position = ([column] for column in self.stamps.T)
        return self._rows[0]

    def part(self, chosen: NDArray[np.bool_]) -> Rows:
        """The rows, in the order of `stamps`, that are chosen."""
        part = self.blank()
        part._rows, stamps = [self.values[chosen]], self.stamps[chosen]
        part._sample, part._position = [stamps[:, 0]], [stamps[:, 1]]
        return part

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything, as arrays."""
        return {
            "patches": np.frombuffer(json.dumps(self.patches.record()).encode(), np.uint8),
            "numbers": np.array([self.limit, self.first, self.samples, self.level], np.int64),
            "stamps": self.stamps,
            "rows": self.values,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Rows:
        """The inverse of `arrays`."""
        limit, first, samples, level = (int(number) for number in arrays["numbers"])
        loaded = cls(Patches.from_record(json.loads(arrays["patches"].tobytes())), limit, first)
        loaded.samples, loaded.level = samples, level
        loaded._sample, loaded._position = [arrays["stamps"][:, 0]], [arrays["stamps"][:, 1]]
        loaded._rows = [arrays["rows"]]
        return loaded


def paired_values(rows: Rows, reference: Rows | None) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """The values of the rows of one model, or of two at the same stamps.

    Raises DataError when there are no rows, when some are not finite, and when the stamps of the two differ.
    """
    x = _checked(rows)
    if reference is None:
        return x, None
    if not np.array_equal(rows.stamps, reference.stamps):
        raise DataError("the rows of the two models are of different positions: pass the same data in one order")
    return x, _checked(reference)


def _checked(rows: Rows) -> NDArray[np.float32]:
    values = rows.values
    if not len(values):
        raise DataError("no rows were seen: the data does not reach this layer")
    if not np.all(np.isfinite(values)):
        raise DataError("the rows hold NaN or infinity")
    return values


def _keys(sample: Indices, position: Indices) -> NDArray[np.uint64]:
    """A number below 2**32 for each stamp; thresholds of it make the choices, one inside the other."""
    mixed = sample.astype(np.uint64) * _BY_SAMPLE + position.astype(np.uint64) * _BY_POSITION  # modulo 2**64
    return mixed & np.uint64(_KEYS - 1)
