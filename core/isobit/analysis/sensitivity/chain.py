"""A model run part by part: a change in one part runs from there on, with the values of all others before it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.analysis.sensitivity.cut_graph import Part, joined
from isobit.backend.checked_model import CheckedModel
from isobit.data import Batch
from isobit.encodings.encoding import Encoding
from isobit.graph.sites import Site, Tensor

#: Parts that run as one where none of them is changed: each boundary costs copies.
_TOGETHER = 3

Values = Mapping[str, NDArray[Any]]
Grids = Mapping[Site, Encoding]


@dataclass(frozen=True, eq=False)
class Changed:
    """What differs from the model of a chain: quantizers at `sites`, and constants by name, as `model` has them.

    `on` are all quantizers that are on in `model`.
    """

    model: CheckedModel
    on: Grids
    sites: Collection[Site]
    constants: Collection[str] = field(default=())

    def is_read_by(self, part: Part) -> bool:
        """Whether a node of the part reads any of it."""
        return any(map(part.reads, self.sites)) or any(part.graph.uses(name) for name in self.constants)

    def first_of(self, parts: Sequence[Part]) -> int:
        """The first part that reads any of it; the number of parts where only an output of the model is another one."""
        return next((index for index, part in enumerate(parts) if self.is_read_by(part)), len(parts))


class Chain:
    """A model, its parts, and the values between them for a few batches, with its quantizers as they are now.

    `on` are those that are on. `ran` is the work of all that has run, in passes over these batches. `long` are parts
    that run as one, by the first of them: another chain of the model and its parts takes them, for backends make a
    session for each part that they meet.
    """

    def __init__(
        self,
        model: CheckedModel,
        on: Grids,
        parts: Sequence[Part],
        batches: Sequence[Batch],
        long: Mapping[int, Part] | None = None,
    ) -> None:
        """Runs every part once on each batch. Raises what running does."""
        self.model, self.parts = model, parts
        self.ran = 0.0
        self.long = long or {
            start: joined(model.graph, parts[start : start + _TOGETHER]) for start in range(0, len(parts), _TOGETHER)
        }
        self._given: list[Values] = [
            {name: np.asarray(batch[name]) for name in model.graph.inputs} for batch in batches
        ]
        self._between: list[list[Values]] = []  # by batch: what is there before each part, and after the last
        for given in self._given:
            states: list[Values] = [{}]
            self._between.append(states)
            for index, part in enumerate(parts):
                states.append(self._run(model, part, index + 1, given, states[-1]))
        self.outputs = [
            _leaving(model, on, {**given, **states[-1]})
            for given, states in zip(self._given, self._between, strict=True)
        ]

    @property
    def nbytes(self) -> int:
        """What the values between the parts take."""
        arrays = {id(a): a.nbytes for states in self._between for state in states for a in state.values()}
        return sum(arrays.values())

    def outputs_with(self, changed: Changed) -> Iterator[Values]:
        """The outputs of each batch. What holds the bits that it held before the change goes no further."""
        first = changed.first_of(self.parts)
        own = [changed.is_read_by(part) for part in self.parts]
        for given, states in zip(self._given, self._between, strict=True):
            state, moved, index = states[first], set[str](), first
            while index < len(self.parts):
                part, end = self.parts[index], index + 1
                if index in self.long and not any(own[index : index + _TOGETHER]):
                    part, end = self.long[index], min(index + _TOGETHER, len(self.parts))
                common = states[end]
                if not own[index] and moved.isdisjoint(part.graph.inputs):
                    state = {**common, **{name: state[name] for name in moved & common.keys()}}
                else:
                    state = self._run(changed.model if own[index] else self.model, part, end, given, state)
                    made = part.graph.outputs.keys() & common.keys()
                    moved |= {name for name in made if not _are_equal(state[name], common[name])}
                moved &= state.keys()
                index = end
            yield _leaving(changed.model, changed.on, {**given, **state})

    def _run(self, model: CheckedModel, part: Part, end: int, given: Values, state: Values) -> Values:
        """What is there after a part, in front of the part `end`, and still wanted."""
        graph = part.graph if model.graph is self.model.graph else part.of(model.graph)
        made = model.run_part(graph, {name: state[name] if name in state else given[name] for name in graph.inputs})
        self.ran += part.work / len(self._given)
        wanted = self.parts[end].live if end < len(self.parts) else model.graph.output_tensors
        return {name: array for name, array in {**state, **made}.items() if name in wanted}


def _are_equal(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two arrays hold the same; what differs mostly does so in the first sample."""
    is_nan_equal = one.dtype.kind in "fc"
    if one.ndim and not np.array_equal(one[:1], other[:1], equal_nan=is_nan_equal):
        return False
    return np.array_equal(one, other, equal_nan=is_nan_equal)


def _leaving(model: CheckedModel, on: Grids, state: Values) -> Values:
    """The outputs that are tensors, behind their quantizers."""
    outputs = {
        name: (state[tensor], on.get(Tensor(tensor))) for name, tensor in model.graph.outputs.items() if tensor in state
    }
    return {name: array if grid is None else grid.fake_quantize(array) for name, (array, grid) in outputs.items()}
