"""FileBatches: batches read from a folder's files when they are asked for, none of them kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.errors import DataError
from isobit.graph.graph import Graph

Arrays = dict[str, NDArray[Any]]


class FileBatches:
    """Goes through the files any number of times. One file is one sample, or with `whole` one batch."""

    def __init__(
        self,
        files: Sequence[Path],
        read: Callable[[Path], Arrays],
        batch_size: int,
        *,
        whole: bool = False,
        samples: int | None = None,
    ) -> None:
        self.files = list(files) if whole else list(files[:samples])
        self._read = read
        self._batch_size = batch_size
        self._whole = whole
        self._samples = samples
        self._current: list[Path] = []

    def __len__(self) -> int:
        return len(self.files) if self._whole else -(-len(self.files) // self._batch_size)

    def where(self) -> str:
        """The file, or the first and last file, of the latest batch."""
        if not self._current:
            return str(self.files[0].parent)
        first, last = self._current[0], self._current[-1]
        return str(first) if first == last else f"{first} to {last.name}"

    def __iter__(self) -> Iterator[Arrays]:
        if self._whole:
            yield from self._whole_files()
            return
        for start in range(0, len(self.files), self._batch_size):
            group = self.files[start : start + self._batch_size]
            samples = []
            for path in group:
                self._current = [path]
                samples.append(self._read(path))
                _check_alike(samples[0], samples[-1], group[0], path)
            self._current = group
            yield {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}

    def _whole_files(self) -> Iterator[Arrays]:
        remaining = self._samples
        for path in self.files:
            if remaining is not None and remaining <= 0:
                return
            self._current = [path]
            batch = self._read(path)
            if remaining is not None:
                batch, count = _first(batch, remaining)
                remaining -= count
            yield batch


def fixed_batch(graph: Graph) -> int | None:
    """The model's own batch size, where axis 0 is not dynamic."""
    shapes = [graph.tensors[name].shape for name in graph.inputs]
    return next((shape[0] for shape in shapes if shape and isinstance(shape[0], int)), None)


def full_batches(files: Sequence[Path], batch_size: int, graph: Graph) -> tuple[Sequence[Path], int, list[str]]:
    """One-sample files that fill the model's fixed batch, the batch size, and a note on files left out."""
    fixed = fixed_batch(graph)
    if fixed is None:
        return files, batch_size, []
    left_out = len(files) % fixed
    if left_out == len(files):
        raise DataError(
            f"{files[0].parent}: {len(files)} sample(s) do not fill one batch: the model's batch is fixed at {fixed}"
        )
    notes = (
        [f"the last {left_out} file(s) do not fill the model's fixed batch of {fixed}: left out"] if left_out else []
    )
    return files[: len(files) - left_out], fixed, notes


def _first(batch: Arrays, most: int) -> tuple[Arrays, int]:
    """The first samples of a batch, and how many they are.

    Inputs without axes go with every sample. Where axis 0 is not the samples of all others (the state of an LSTM has
    its layers there), the batch stays whole, and the shortest tells its samples.
    """
    lengths = {len(array) for array in batch.values() if array.ndim}
    count = min(lengths, default=1)
    if len(lengths) != 1 or count <= most:
        return batch, count
    return {name: array[:most] if array.ndim else array for name, array in batch.items()}, most


def _check_alike(first: Arrays, other: Arrays, first_path: Path, path: Path) -> None:
    for name, array in other.items():
        if array.shape != first[name].shape:
            raise DataError(
                f"array for input {name!r} has shape {array.shape}; that of {first_path.name} has {first[name].shape}"
            )
        if array.dtype != first[name].dtype:
            raise DataError(
                f"array for input {name!r} is {array.dtype}, and that of {first_path.name} is {first[name].dtype}"
            )
