"""Opening a model as the branches that the data take; where batches take several, all of them stay in the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from isobit.backend.optional import OpenedByExample
from isobit.data import Dataset
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
    inner = sim.backend_model.inner
    if example is None or not isinstance(inner, OpenedByExample) or inner.example is None:
        return sim
    data = data_of(sim.graph)
    if data.is_one_shot or all(map(inner.takes, data)):
        return sim
    del sim, inner  # two of them may not fit into memory
    undecided = opened(None)
    undecided.simulation.notes[_SEVERAL] = None
    return undecided
