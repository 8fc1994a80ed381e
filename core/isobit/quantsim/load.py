"""`isobit.load`: a saved simulator put on its float model again."""

from __future__ import annotations

from os import PathLike, fspath
from typing import Any

from isobit.backend.contract import Backend
from isobit.data import example_from_record, example_to_record
from isobit.graph.fingerprint import check_fingerprint
from isobit.placement.quant_config import QuantConfig
from isobit.plugins import registry
from isobit.quantsim.quantsim import QuantSim
from isobit.quantsim.save_file import read_saved, restore_state
from isobit.quantsim.simulation import Simulation
from isobit.quantsim.training.saved_adapters import replay


def load(
    path: str | PathLike[str], model: Any, example_inputs: Any = None, *, backend: str | Backend | None = None
) -> QuantSim:
    """Put a saved simulator on its float model again.

    A model that is opened with an example batch (a PyTorch module) is opened with one like that of the saved simulator,
    and with that very one where it decided what was opened (a branch of an `If`), unless `example_inputs` is given.
    Raises ModelError when the file is none, or when `model` is not the model it was made from (which weight differs).
    """
    where = fspath(path)
    contents = read_saved(where)
    manifest = contents["manifest"]
    record = manifest.get("example")
    example = example_inputs
    if example is None:
        example = example_from_record(record) if contents["example"] is None else contents["example"]
    opened = registry().open(model, example, backend)
    keys = ("weights", "activations", "overrides", "exclude")
    simulation = Simulation(opened, contents["target"], QuantConfig(*(manifest[key] for key in keys)))
    simulation.example = record if example_inputs is None else example_to_record(example_inputs)
    check_fingerprint(manifest["fingerprint"], simulation.fingerprint(), where)
    replay(simulation, contents["edits"], manifest["adapters"], contents["arrays"], where)
    restore_state(simulation, contents)
    return QuantSim.of_simulation(simulation)
