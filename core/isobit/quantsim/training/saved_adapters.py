"""The adapters of a simulator in its file: which one is in the model, and the weights and encodings of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.backend.optional import HoldsAdapters
from isobit.edits.edit import Edit
from isobit.encodings.encoding import Encodings
from isobit.errors import ModelError
from isobit.formats import isobit_json
from isobit.quantsim.simulation import Simulation
from isobit.quantsim.training.exchange_adapters import check_fits

Array = NDArray[Any]


def adapters_to_record(simulation: Simulation, keep: Callable[[Array], str]) -> dict[str, Any] | None:
    """As JSON data, with the arrays by the names that `keep` gives them; None for a model without adapters."""
    model = simulation.model.inner
    if not isinstance(model, HoldsAdapters) or not model.adapters:
        return None
    each = {
        name: {
            "weights": {key: keep(np.asarray(array)) for key, array in model.adapter_weights(name).items()},
            "settings": dict(model.adapter_settings(name)),
            "encodings": isobit_json.dumps(Encodings(simulation.beside_adapters.get(name, {}))),
        }
        for name in model.adapters
    }
    return {"exchanges": [list(exchange) for exchange in simulation.exchanges], "each": each}


def replay(
    simulation: Simulation,
    edits: Sequence[Edit],
    record: Mapping[str, Any],
    arrays: Mapping[str, Array],
    where: str,
) -> None:
    """Edit a model that was just opened, exchange its adapters in between as they were, and give each its weights.

    Raises ModelError, which names the file `where`, for a record that is none or of other adapters.
    """
    try:
        exchanges = [(int(count), str(name)) for count, name in record.get("exchanges", ())]
        each = {
            str(name): (
                {key: np.array(arrays[array]) for key, array in held["weights"].items()},
                dict(held["settings"]),
                dict(isobit_json.loads(held["encodings"], where)),
            )
            for name, held in record.get("each", {}).items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{where}: adapters: not a record of adapters: {error}") from error
    done, model = 0, simulation.model
    inner = model.inner
    if each and not (isinstance(inner, HoldsAdapters) and set(each) == set(inner.adapters)):
        raise ModelError(f"{where} has the adapters {', '.join(each)}, and the model others, or none")
    for count, name in exchanges:
        if edits[done:count]:
            model.edit(edits[done:count])
        done = count
        if isinstance(inner, HoldsAdapters):
            model.use_adapter(name)
            simulation.exchanges.append((count, name))
    if edits[done:]:
        model.edit(edits[done:])
    for name, (weights, settings, encodings) in each.items():
        if isinstance(inner, HoldsAdapters):
            check_fits(weights, inner.adapter_weights(name), f"the adapter {name!r} in {where}")
            inner.set_adapter_weights(name, weights, settings)
            simulation.beside_adapters[name] = encodings
