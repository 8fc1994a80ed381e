"""A simulator with its report in a file, put on a copy of what it was made of: a search need not make it again."""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from isobit.backend.optional import HoldsAdapters
from isobit.data import Dataset
from isobit.errors import IsobitError
from isobit.files import is_there, write_atomically
from isobit.quantsim.save_file import read_saved, restore_state, save
from isobit.quantsim.simulation import Simulation
from isobit.recipes.recipe import StepResult
from isobit.techniques.technique import TechniqueReport

#: What a saved simulator leaves out and a report says: how it came to be.
_RECORD = "attempt.json"


def can_be_kept(simulation: Simulation) -> bool:
    """Whether its edits say all of it: adapters that change places are no edits."""
    inner = simulation.model.inner
    return not (isinstance(inner, HoldsAdapters) and inner.adapters)


def keep(simulation: Simulation, path: Path) -> None:
    """Write it, whole or not at all, but for rows that techniques observed: they are large, and nothing reads them."""
    simulation.statistics.forget_rows()
    record = {
        "judged": 0 if simulation.judge is None else len(simulation.judge.samples),
        "notes": list(simulation.notes),
        "steps": [asdict(step) for step in simulation.steps],
        "reports": [
            {"technique": r.technique, "changed": r.changed, "left": dict(r.left), "notes": r.notes}
            for r in simulation.reports
        ],
    }
    with write_atomically(path) as temporary:
        save(simulation, temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(_RECORD, json.dumps(record))


def restored(pristine: Simulation, path: Path, data: Dataset) -> Simulation | None:
    """The simulator that was made of `pristine` on this data; None where the file holds none that fits."""
    if not is_there(path):
        return None
    try:
        contents = read_saved(str(path))
        with zipfile.ZipFile(path) as archive:
            record: dict[str, Any] = json.loads(archive.read(_RECORD))
        steps = [StepResult(**step) for step in record["steps"]]
        reports = [
            TechniqueReport(r["technique"], tuple(r["changed"]), r["left"], notes=tuple(r["notes"]))
            for r in record["reports"]
        ]
        judged, noted = int(record["judged"]), [str(note) for note in record["notes"]]
        simulation = pristine.copy()
        edits = contents["edits"][len(simulation.edits) :]
        if edits:
            simulation.model.edit(edits)
        if judged:
            simulation.judge = None
            simulation.keep_reference(data.batches(data.spread(judged)))
        restore_state(simulation, contents)
        simulation.notes, simulation.steps, simulation.reports = dict.fromkeys(noted), steps, reports
    except (IsobitError, OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile):
        return None  # what is damaged is made again
    return simulation
