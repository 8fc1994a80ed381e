"""A GraphModel as bytes and back: a length, JSON of that many bytes, and the constants as safetensors. No pickle."""

from __future__ import annotations

import json

import numpy as np
import safetensors
import safetensors.numpy

from isobit.errors import IsobitError, ModelError
from isobit.formats import isobit_json
from isobit.graph_model import Engine, GraphModel
from isobit.graph_records import graph_from_record, graph_to_record

_LENGTH = 8


def dump(model: GraphModel) -> bytes:
    """The bytes of a model."""
    off = [index for index, site in enumerate(model.quantizers) if site in model.off]
    meta = {"graph": graph_to_record(model.graph), "encodings": isobit_json.dumps(model.encodings()), "off": off}
    text = json.dumps(meta).encode()
    arrays = {name: np.asarray(array, order="C") for name, array in model.weights.items()}
    return len(text).to_bytes(_LENGTH, "little") + text + safetensors.numpy.save(arrays)


def restore(engine: Engine, state: bytes) -> GraphModel:
    """The model that `dump` wrote. Raises ModelError for other bytes."""
    try:
        end = _LENGTH + int.from_bytes(state[:_LENGTH], "little")
        meta = json.loads(state[_LENGTH:end].decode())
        graph = graph_from_record(meta["graph"])
        model = GraphModel(engine, graph, safetensors.numpy.load(state[end:]))
        model.set_quantizers(dict(isobit_json.loads(meta["encodings"], "the state")))
        sites = list(model.quantizers)
        model.enable([sites[index] for index in meta["off"]], on=False)
    except (ValueError, KeyError, IndexError, TypeError, IsobitError, safetensors.SafetensorError) as error:
        raise ModelError(f"these bytes are no state of a {engine.name} model: {error}") from error
    return model
