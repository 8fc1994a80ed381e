"""Which axis of an input holds the samples, and whole sets cut along it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from isobit.errors import DataError
from isobit.graph.graph import Graph


@dataclass(frozen=True)
class SampleAxes:
    """The axes of a model's inputs that hold the samples.

    `fixed` is the model's own batch size, where axis 0 of every input with axes is that number. `by_name` has the axis
    of each input that follows the batch; a side input (a sample rate, a table) is not in it.
    """

    fixed: int | None
    by_name: Mapping[str, int]
    symbols: Mapping[str, str]

    @classmethod
    def of(cls, graph: Graph) -> SampleAxes:
        """The batch is what most inputs have on axis 0, the first of them where two are as frequent."""
        inputs = {name: graph.tensors[name].shape for name in graph.inputs}
        shapes = {name: shape for name, shape in inputs.items() if shape}
        firsts = [shape[0] for shape in shapes.values()]
        if firsts and isinstance(firsts[0], int) and set(firsts) == {firsts[0]}:
            return cls(firsts[0], dict.fromkeys(shapes, 0), {})
        symbols = {name: str(shape[0]) for name, shape in shapes.items() if not isinstance(shape[0], int)}
        if not symbols:
            return cls(None, {}, {})
        batch = Counter(symbols.values()).most_common(1)[0][0]
        axes = {name: [str(size) for size in shape].index(batch) for name, shape in shapes.items() if batch in shape}
        return cls(None, {**dict.fromkeys(symbols, 0), **axes}, {**symbols, **dict.fromkeys(axes, batch)})

    def counts(self, batch: Mapping[str, NDArray[Any]]) -> list[dict[str, int]]:
        """The numbers of samples of the inputs of a batch, of those together that the model calls by one name."""
        groups: dict[str, dict[str, int]] = {}
        for name, axis in self.by_name.items():
            if name in batch and batch[name].ndim > axis:
                groups.setdefault(self.symbols.get(name, ""), {})[name] = batch[name].shape[axis]
        return list(groups.values())

    def size(self, batches: Iterable[Mapping[str, NDArray[Any]]]) -> int:
        """The number of samples in batches; one each where the model says no batch."""
        return sum(max((max(group.values()) for group in self.counts(batch)), default=1) for batch in batches)

    def cut(self, whole: Mapping[str, NDArray[Any]]) -> dict[str, int]:
        """The axes along which the arrays of a whole set are cut into batches; an array that is in none goes to each.

        An input with another name for its first size than the batch has is cut where it holds as many samples. Raises
        DataError where numbers of samples differ.
        """
        axes = {name: axis for name, axis in self.by_name.items() if whole[name].ndim > axis}
        if not axes:
            return {}
        counts = {name: whole[name].shape[axis] for name, axis in axes.items()}
        if self.fixed is not None:  # what fits as it is beside more samples of the others is a side input
            if max(counts.values()) > self.fixed:
                axes = {name: axis for name, axis in axes.items() if counts[name] != self.fixed}
        else:
            batch = Counter(self.symbols[name] for name in axes).most_common(1)[0][0]
            samples = {counts[name] for name in axes if self.symbols[name] == batch}
            axes = {n: axis for n, axis in axes.items() if self.symbols[n] == batch or counts[n] in samples}
        counts = {name: counts[name] for name in axes}
        if len(set(counts.values())) > 1:
            raise DataError(f"the arrays hold different numbers of samples: {counts}")
        return axes


def cut_batches(
    whole: Mapping[str, NDArray[Any]], axes: Mapping[str, int], total: int, batch_size: int
) -> Iterator[dict[str, NDArray[Any]]]:
    """Batches of the first `total` samples."""
    for start in range(0, total, batch_size):
        samples = slice(start, min(start + batch_size, total))
        yield {
            name: array[(slice(None),) * axes[name] + (samples,)] if name in axes else array
            for name, array in whole.items()
        }
