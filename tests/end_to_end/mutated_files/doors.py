"""What reads a file of each kind: the calls that a user makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from mutated_files.seeds import NETWORK

import isobit
from isobit.cli.user_data.calibration_files import load as load_data
from isobit.cli.user_data.image_options import ImageOptions
from isobit.data import Dataset
from isobit.quantsim.encodings_files import read_encodings
from isobit.statistics import Statistics
from isobit.testing.networks import NETWORKS


class Doors:
    """Opens files as users do; `seeds` is the folder of the valid ones."""

    def __init__(self, seeds: Path) -> None:
        self.seeds = seeds
        self.model = seeds / f"{NETWORK}.onnx"
        self.batch = NETWORKS[NETWORK]().batch(2)
        self.sim = cache(lambda: isobit.quantize(self.model, [self.batch]))

    def open(self, kind: str, path: Path) -> None:
        """Read a file and do with it what it is for."""
        doors: Mapping[str, Callable[[Path], None]] = {
            "onnx": self.quantize,
            "qdq": self.encodings,
            "encodings": self.encodings,
            "simulators": self.simulator,
            "statistics": self.statistics,
            "targets": self.target,
            "recipes": self.recipe,
            "data": self.data,
        }
        doors[kind](path)

    def quantize(self, path: Path) -> None:
        """Quantize a model with data of the shapes that its inputs say, export and save it."""
        sim = isobit.QuantSim(path)
        batch = {name: self._array(sim, name) for name in sim.graph.inputs}
        sim = isobit.quantize(sim, [batch])
        sim.export(path.parent / "exported")
        sim.save(path.parent / "saved.isobit")

    def _array(self, sim: isobit.QuantSim, name: str):
        import numpy as np

        info = sim.graph.tensors[name]
        shape = [n if isinstance(n, int) and 0 < n < 1000 else 2 for n in info.shape or ()]
        if info.dtype == "string":
            return np.full(shape, "text", dtype=object)
        dtype = "float32" if info.dtype == "bfloat16" else info.dtype
        return np.linspace(-1, 1, int(np.prod(shape))).reshape(shape).astype(dtype)

    def encodings(self, path: Path) -> None:
        """Read encodings without a model and with one, compare them, and load them into a simulator."""
        first = _kept(lambda: read_encodings(path))
        second = _kept(lambda: read_encodings(path, self.sim()))
        third = _kept(lambda: isobit.QuantSim(self.model).load_encodings(path, strict=False))
        for error in (first, second, third):
            if error is not None:
                raise error

    def simulator(self, path: Path) -> None:
        """Load a saved simulator, run, export and calibrate it again, from its statistics and with data."""
        sim = isobit.load(path, self.model)
        sim.run(self.batch)
        sim.export(path.parent / "exported")
        if len(sim.statistics):
            sim.recalibrate("mse")
        sim.calibrate([self.batch], "percentile")

    def statistics(self, path: Path) -> None:
        """Load statistics, use them for every scheme, and go on with them as the file of an interrupted pass."""
        first = _kept(lambda: Statistics.load(path))
        second = _kept(lambda: self._recalibrate(path))
        third = _kept(lambda: isobit.QuantSim(self.model).calibrate([self.batch], resume=path))
        for error in (first, second, third):
            if error is not None:
                raise error

    def _recalibrate(self, path: Path) -> None:
        sim = isobit.QuantSim(self.model)
        sim.load_statistics(path)
        for method in ("minmax", "mse", "entropy", "percentile", "moving-average", "sqnr"):
            sim.recalibrate(method)
        sim.apply(isobit.techniques.EqualizeCrossLayers(), isobit.techniques.CorrectBias())

    def target(self, path: Path) -> None:
        """Quantize for a target file."""
        isobit.quantize(self.model, [self.batch], target=path).run(self.batch)

    def recipe(self, path: Path) -> None:
        """Quantize by a recipe file."""
        isobit.quantize(self.model, [self.batch], recipe=path).run(self.batch)

    def data(self, path: Path) -> None:
        """Read data of the command line and calibrate with it."""
        graph = self.sim().graph
        files = load_data(path, graph, ImageOptions())
        list(Dataset(files.source, graph))
        isobit.QuantSim(self.model).calibrate(files.source)


def _kept(call: Callable[[], object]) -> isobit.IsobitError | None:
    """The refusal of a call, so that the next one is tried too."""
    try:
        call()
    except isobit.IsobitError as error:
        return error
    return None
