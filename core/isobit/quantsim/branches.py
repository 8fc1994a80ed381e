"""Opening a model as the branches that the data take; where batches take several, all of them stay in the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from isobit.backend.optional import OpenedByExample
from isobit.data import Batch, Dataset
from isobit.graph.graph import Graph
from isobit.quantsim.quantsim import QuantSim

_SEVERAL = (
    "batches of the data take different branches of an If, so that the operations inside stay in float: quantize a "
    "model for each kind of data to have them in integers"
)


def open_for_data(opened: Callable[[Any], QuantSim], example: Any, data_of: Callable[[Graph], Dataset]) -> QuantSim:
    """The simulator that `opened` makes with an example of the data, or with none where batches need other branches.

    `data_of` gives the data for a graph; they are read once more where an example decides, and a one-shot iterator not.
    Raises what `opened` and the data raise.
    """
    sim = opened(example)
    if example is None or not _is_decided(sim):
        return sim
    data = data_of(sim.graph)
    if data.is_one_shot:
        return sim
    first = data.first()
    if not _takes(sim, first):  # an example cut from arrays has another number of samples than a batch
        del sim  # two of them may not fit into memory
        sim = opened(first)
    if all(_takes(sim, batch) for batch in data):
        return sim
    del sim
    undecided = opened(None)
    undecided.simulation.notes[_SEVERAL] = None
    return undecided


def _is_decided(sim: QuantSim) -> bool:
    inner = sim.backend_model.inner
    return isinstance(inner, OpenedByExample) and inner.example is not None


def _takes(sim: QuantSim, batch: Batch) -> bool:
    """Whether a batch takes the branches that an example has decided, if any were."""
    inner = sim.backend_model.inner
    return not isinstance(inner, OpenedByExample) or inner.takes(batch)
