"""The data of a reconstruction: some batches of the user's, and what single tensors hold for their samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from isobit.data import Batch
from isobit.data.samples import SampleAxes
from isobit.graph.graph import Graph

Array = NDArray[np.float32]

# A step of the golden ratio, times 2**32: keys of numbers in a row spread evenly, so that a threshold keeps a spread
# choice, and what a lower one keeps is among what a higher one does.
_STEP, _KEYS = 2654435769, 1 << 32


def choose_batches(data: Iterable[Batch], graph: Graph, samples: int) -> list[Batch]:
    """Batches, spread over the data, that hold at most so many samples, and one where that alone holds more."""
    axes, level = SampleAxes.of(graph), 0
    kept: dict[int, Batch] = {}
    for number, batch in enumerate(data):
        if _is_kept(number, level):
            kept[number] = batch
        while len(kept) > 1 and axes.size(kept.values()) > samples:
            level += 1
            kept = {number: batch for number, batch in kept.items() if _is_kept(number, level)}
    return list(kept.values())


def held_back(batches: Iterable[Batch], graph: Graph, every: int) -> Iterator[Batch]:
    """Each `every`th sample, as `BlockSamples.split` counts them; whole batches where a batch has a fixed size."""
    axes, start = SampleAxes.of(graph), 0
    for batch in batches:
        count = axes.size([batch])
        chosen = [index for index in range(count) if (start + index) % every == every - 1]
        start += count
        if axes.fixed is not None or not axes.by_name:
            if chosen:
                yield batch
        elif chosen:
            yield {
                name: array.take(chosen, axes.by_name[name])
                if name in axes.by_name and array.ndim > axes.by_name[name] and array.shape[axes.by_name[name]] == count
                else array
                for name, array in batch.items()
            }


class KeptSamples:
    """Keeps the samples of a tensor, whole, by their numbers; where they take more than `memory` bytes, some of them.

    Two of them with the same data keep the same ones, or one of them some of what the other keeps.
    """

    wants: Literal["tensor"] = "tensor"

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.kept: dict[int, Array] = {}
        self._samples = self._level = self._bytes = 0

    def update(self, batch: Array, channel_axis: int | None = None) -> None:
        """Add the tensor of one batch; axis 0 holds the samples."""
        samples = batch if batch.ndim else batch.reshape(1)
        for number, value in enumerate(samples, self._samples):
            if _is_kept(number, self._level):
                self.kept[number] = np.array(value, np.float32)
                self._bytes += self.kept[number].nbytes
            while self._bytes > self.memory and len(self.kept) > 1:
                self._level += 1
                self.kept = {number: kept for number, kept in self.kept.items() if _is_kept(number, self._level)}
                self._bytes = sum(kept.nbytes for kept in self.kept.values())
        self._samples += len(samples)


@dataclass(frozen=True, eq=False)
class BlockSamples:
    """What goes into a block and what is to come out, of the same samples, by tensor and number of the sample.

    Samples of one shape can be computed at a time: `alike` are their numbers.
    """

    given: Mapping[str, Mapping[int, Array]]
    wanted: Mapping[str, Mapping[int, Array]]
    alike: Sequence[Sequence[int]] = field(default=())

    @classmethod
    def of(cls, given: Mapping[str, KeptSamples], wanted: Mapping[str, KeptSamples]) -> BlockSamples:
        """Those that all tensors have kept."""
        kept = [item.kept for item in (*given.values(), *wanted.values())]
        shapes: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for number in sorted(set.intersection(*(set(values) for values in kept))):
            shapes.setdefault(tuple(values[number].shape for values in kept), []).append(number)
        return cls(
            {name: item.kept for name, item in given.items()},
            {name: item.kept for name, item in wanted.items()},
            tuple(shapes.values()),
        )

    def __len__(self) -> int:
        return sum(map(len, self.alike))

    @property
    def power(self) -> float:
        """The squares of what is wanted, a sample in the mean."""
        numbers = [number for some in self.alike for number in some]
        squares = sum(float(np.square(values[number]).sum()) for values in self.wanted.values() for number in numbers)
        return squares / max(len(numbers), 1)

    def batch(self, numbers: Sequence[int]) -> tuple[dict[str, Array], dict[str, Array]]:
        """What is given and what is wanted, of these samples of one shape."""
        given, wanted = (
            {name: np.stack([values[number] for number in numbers]) for name, values in tensors.items()}
            for tensors in (self.given, self.wanted)
        )
        return given, wanted

    def split(self, every: int) -> tuple[BlockSamples, BlockSamples]:
        """All but each `every`th sample, and the others, which judge."""
        parts: tuple[list[list[int]], list[list[int]]] = [], []
        place = 0
        for numbers in self.alike:
            judges = [number for index, number in enumerate(numbers, place) if index % every == every - 1]
            parts[0].append([number for number in numbers if number not in set(judges)])
            parts[1].append(judges)
            place += len(numbers)
        first, second = (BlockSamples(self.given, self.wanted, [some for some in part if some]) for part in parts)
        return first, second

    def batches(self, size: int) -> list[Sequence[int]]:
        """All samples in batches."""
        return [some[start : start + size] for some in self.alike for start in range(0, len(some), size)]

    def draw(self, rng: np.random.Generator, size: int) -> Sequence[int]:
        """A batch at random, of one shape."""
        shares = np.array([len(some) for some in self.alike], np.float64)
        some = self.alike[int(rng.choice(len(self.alike), p=shares / shares.sum()))]
        return [some[index] for index in rng.choice(len(some), min(size, len(some)), replace=False)]


def _is_kept(number: int, level: int) -> bool:
    return number * _STEP % _KEYS < _KEYS >> level
