"""A model and the data for it, opened together: what branches the model takes may be for the data to say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from isobit.cli.user_data.calibration_files import load
from isobit.cli.user_data.data_files import DataFiles
from isobit.cli.user_data.image_options import ImageOptions
from isobit.data import Batch, Dataset
from isobit.errors import DataError
from isobit.graph.graph import Graph
from isobit.graph.ops import BODIES
from isobit.quantsim.branches import open_for_data
from isobit.quantsim.quantsim import QuantSim

#: Opens the model, with an example batch or without.
Opener = Callable[[Batch | None], QuantSim]


def open_on_data(
    opened: Opener, data: Path, images: ImageOptions, *, batch_size: int = 32, samples: int | None = None
) -> tuple[QuantSim, DataFiles]:
    """The simulator and the data at a path for its inputs.

    Where an `If` or a loop is in the graph the model is opened again with the first batch, as `isobit.quantize` opens
    it: the branch that the data takes is quantized as any other part of the model.
    """
    sim = opened(None)
    files = load(data, sim.graph, images, batch_size=batch_size, samples=samples)
    if not has_bodies(sim.graph):
        return sim, files
    batch = first_batch(files, sim.graph, batch_size, ignore_non_finite=True)
    del sim  # two of them may not fit into memory

    def data_of(graph: Graph) -> Dataset:
        nonlocal files
        files = load(data, graph, images, batch_size=batch_size, samples=samples)
        return Dataset(files.source, graph, batch_size=batch_size, ignore_non_finite=True)

    try:
        sim = open_for_data(opened, batch, data_of)
    except DataError as error:
        with files.named():
            raise error
    return sim, load(data, sim.graph, images, batch_size=batch_size, samples=samples)


def has_bodies(graph: Graph) -> bool:
    """Whether operations are in the graph that run others: which ones, an example may decide."""
    return any(node.op in BODIES for node in graph.nodes)


def first_batch(files: DataFiles, graph: Graph, batch_size: int, *, ignore_non_finite: bool = False) -> Batch:
    """The first batch of the data, checked against the model's inputs."""
    with files.named():
        return Dataset(files.source, graph, batch_size=batch_size, ignore_non_finite=ignore_non_finite).first()
