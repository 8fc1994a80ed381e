"""What is killed: verbs of a small network that write, and what must be true of their files whenever they end."""

from __future__ import annotations

import hashlib
import mmap
import struct
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import isobit
from isobit.quantsim.observe import JOURNAL
from isobit.statistics import Statistics
from isobit.testing.networks import NETWORKS

BATCHES = 3 * JOURNAL + 20

#: Which two exports and saves take turns: they differ in every file.
FORMATS = ("int8", "int4")

_EXPORTED = ("encodings.json", "model.qdq.onnx", "summary.txt")


class Verbs:
    """The verbs, each run in `folder`; `prepare` makes what they start from, in a process that is not killed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.network = folder, NETWORKS["conv_net"]()
        self.model = folder / "model.onnx"
        self.out, self.saved, self.statistics = folder / "out", folder / "saved.isobit", folder / "statistics.npz"
        self.names: Mapping[str, Callable[[int, Callable[[], None]], None]] = {
            "quantize": self.quantize, "calibrate": self.calibrate, "export": self.export, "save": self.save,
        }  # fmt: skip

    def prepare(self) -> None:
        """The model, two simulators of it, and the files that a whole run of each verb writes."""
        import onnx

        from isobit_onnx.reference_networks import build_onnx

        onnx.save(build_onnx(self.network), self.model)
        for turn, weights in enumerate(FORMATS):
            self._quantized(turn).save(self.folder / f"{weights}.isobit")
        self.seen.write_bytes(bytes(8))
        (self.folder / "whole").mkdir()
        isobit.QuantSim(self.model).calibrate(self._data(), resume=self.folder / "whole" / "statistics.npz")

    @property
    def seen(self) -> Path:
        """The file that counts the batches that calibration asked for; what is mapped survives a kill."""
        return self.folder / "seen.bin"

    def _quantized(self, turn: int) -> isobit.QuantSim:
        sim = isobit.QuantSim(self.model, weights=FORMATS[turn % 2])
        return isobit.quantize(sim, [self.network.batch(2)], method="minmax")

    # --- what is killed: `begins` says when the part begins that matters ---------------------------------------------

    def quantize(self, turn: int, begins: Callable[[], None]) -> None:
        """Quantize and export into a folder that is there."""
        begins()
        self._quantized(turn).export(self.out)

    def calibrate(self, turn: int, begins: Callable[[], None]) -> None:
        """Go through many batches, into and from the file `resume`."""
        isobit.QuantSim(self.model).calibrate(self._data(begins), resume=self.statistics)

    def export(self, turn: int, begins: Callable[[], None]) -> None:
        """Export one of the two simulators into a folder that is there."""
        sim = self._loaded(turn)
        begins()
        sim.export(self.out)

    def save(self, turn: int, begins: Callable[[], None]) -> None:
        """Save one of the two simulators over the other."""
        sim = self._loaded(turn)
        begins()
        for _ in range(20):  # one is over before a kill meets it
            sim.save(self.saved)

    def _loaded(self, turn: int) -> isobit.QuantSim:
        return isobit.load(self.folder / f"{FORMATS[turn % 2]}.isobit", self.model)

    def _data(self, begins: Callable[[], None] = lambda: None) -> Callable[[], Iterator[Mapping[str, Any]]]:
        signs = [begins]

        def batches() -> Iterator[Mapping[str, Any]]:
            with self.seen.open("r+b") as file, mmap.mmap(file.fileno(), 8) as shared:
                for index in range(BATCHES):
                    if index == 1 and signs:  # the first batch alone is looked at before
                        signs.pop()()
                    time.sleep(0.003)  # most kills shall meet the pass, not what comes after it
                    shared[:] = struct.pack("q", index)
                    yield self.network.batch(2, seed=index)
                shared[:] = struct.pack("q", BATCHES)

        return batches

    # --- what must be true -------------------------------------------------------------------------------------------

    def state(self, verb: str) -> Any:
        """What the files of a verb are now, in a form that can be compared; they are read as users would."""
        if verb == "calibrate":
            return Statistics.load(self.statistics).batches if self.statistics.exists() else 0
        if verb == "save":
            return _members(self.saved)
        present = [name for name in _EXPORTED if (self.out / name).exists()]
        return tuple(_hash(self.out / name) for name in present[:2]) if len(present) == len(_EXPORTED) else present

    def asked(self) -> int:
        """How many batches the last calibration asked for."""
        return int(struct.unpack("q", self.seen.read_bytes())[0])

    def same_as_whole(self) -> bool:
        """Whether the statistics of a calibration in parts are those of one in one go."""
        whole = Statistics.load(self.folder / "whole" / "statistics.npz")
        parts = Statistics.load(self.statistics)
        return whole.batches == parts.batches == BATCHES and all(whole[site] == parts[site] for site in whole)

    def leftovers(self) -> list[str]:
        """Hidden folders of isobit in all places that the verbs write to, temporary files among them."""
        return [str(path) for path in self.folder.rglob(".isobit-*")]


def _members(path: Path) -> tuple[str, ...]:
    """What is in an archive; its bytes also hold when it was written. Raises BadZipFile for one that is torn."""
    with zipfile.ZipFile(path) as archive:
        return tuple(f"{name} {hashlib.sha256(archive.read(name)).hexdigest()}" for name in archive.namelist())


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
