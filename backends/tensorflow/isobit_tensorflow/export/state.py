"""A simulator as bytes: its own ``.keras`` archive, which holds data and no code."""

from __future__ import annotations

import tempfile
from pathlib import Path

from isobit_tensorflow.simulate.simulator import Simulator


def dump(simulator: Simulator) -> bytes:
    """The bytes of the ``.keras`` file of a simulator."""
    with tempfile.TemporaryDirectory(prefix="isobit-") as folder:
        path = Path(folder) / "simulator.keras"
        simulator.save(path)
        return path.read_bytes()
