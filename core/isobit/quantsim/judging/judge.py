"""The judge: how near the outputs of a quantized model are to those of the float model as it came, sample by sample.

Whatever is compared, schemes, steps of a recipe, corrections with and without, is compared by this one figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from isobit.backend.checked_model import CheckedModel
from isobit.data import Batch
from isobit.errors import ModelError
from isobit.graph.graph import Graph
from isobit.graph.sites import Tensor
from isobit.quantsim.checks.quality import Outputs, sample_decibels
from isobit.statistics.observer import Request

#: Decibels by which a later candidate must be better: last bits, in which frameworks differ, do not choose.
MARGIN = 0.1

#: Decibels by which one that is worse after a few samples is not run on the others.
_HOPELESS = 2.0

#: What ends a network and flattens large values: behind it, a sample that is decided says nothing of the others.
_LAST = frozenset({"Softmax", "LogSoftmax", "Sigmoid"})

#: The decibels of the samples of each batch.
Ratios = list[list[float]]


@dataclass(frozen=True, eq=False)
class Judge:
    """Samples, and what the float model computes for them.

    Where an output is that of a Softmax or Sigmoid, what goes into it is judged: logits tell more of errors than
    probabilities, most of which are next to 0 or 1.
    """

    samples: Sequence[tuple[Batch, Outputs]]
    is_of_outputs: bool = True

    @classmethod
    def of(cls, model: CheckedModel, batches: Sequence[Batch]) -> Judge:
        """For a float model: one run of it."""
        return cls([(batch, judged_outputs(model, batch)) for batch in batches], not _flattened(model.graph))

    def ratios(self, model: CheckedModel, rival: Ratios | None = None) -> Ratios:
        """The quality of the outputs of `model`; of a few samples where `rival` is far ahead.

        That of a model that fails on them is minus infinity.
        """
        ratios: Ratios = []
        try:
            for batch, exact in self.samples:
                ratios.append(sample_decibels(exact, judged_outputs(model, batch)))
                if rival is not None and mean(ratios) < mean(rival[: len(ratios)]) - _HOPELESS:
                    break
        except ModelError:  # rounded numbers became sizes that do not fit: `run` says so to who asks for it
            return [[float("-inf")]]
        return ratios


def mean(ratios: Ratios) -> float:
    """The mean over all samples; 200 where no output can be compared."""
    values = [value for batch in ratios for value in batch]
    return float(np.mean(values)) if values else 200.0


def is_better(now: Ratios, was: Ratios, by: float = 0.0) -> bool:
    """Whether outputs gained more than so many decibels, and more than samples drawn by chance would show.

    The mean gain of the samples is compared with its standard error: a gain within that is as likely none on new data.
    """
    before, after = ([value for batch in ratios for value in batch] for ratios in (was, now))
    if len(before) != len(after) or not np.all(np.isfinite([*before, *after])):
        return mean(now) > mean(was) + by
    gains = np.subtract(after, before)
    return bool(gains.size) and float(gains.mean()) > max(by, float(gains.std()) / np.sqrt(gains.size))


def judged_outputs(model: CheckedModel, batch: Batch) -> Outputs:
    """The outputs of a model, by name; in place of that of a last Softmax or Sigmoid what goes into it."""
    graph = model.graph
    flattened = _flattened(graph)
    if not flattened:
        return model.run(batch)
    kept = {name: _Kept() for name, tensor in graph.outputs.items() if graph.is_float(tensor)}
    requests = [
        Request(Tensor(flattened.get(name, graph.outputs[name])), observer, "before" if name in flattened else "after")
        for name, observer in kept.items()
    ]
    model.observe([batch], requests)
    return {name: observer.values for name, observer in kept.items()}


def _flattened(graph: Graph) -> dict[str, str]:
    """Of the outputs that a Softmax or Sigmoid computes, and nothing else reads: the tensor that goes into it."""
    found = {}
    for name, tensor in graph.outputs.items():
        node = graph.producer(tensor)
        before = node.inputs[0] if node is not None and node.op in _LAST and not graph.uses(tensor) else None
        if before is not None and before in graph.tensors:
            found[name] = before
    return found


class _Kept:
    """Keeps the tensor of one batch."""

    wants: Literal["tensor"] = "tensor"

    def __init__(self) -> None:
        self.values: NDArray[Any] = np.zeros(0, np.float32)

    def update(self, batch: NDArray[np.float32], channel_axis: int | None = None) -> None:
        """Keep a copy."""
        self.values = np.array(batch)
