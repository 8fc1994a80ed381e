"""A simulator as bytes: its own ``.keras`` archive, which holds data and no code."""

from __future__ import annotations

from isobit.files import temporary_folder
from isobit_tensorflow.simulate.simulator import Simulator


def dump(simulator: Simulator) -> bytes:
    """The bytes of the ``.keras`` file of a simulator."""
    with temporary_folder() as folder:
        path = folder / "simulator.keras"
        simulator.save(path)
        return path.read_bytes()
