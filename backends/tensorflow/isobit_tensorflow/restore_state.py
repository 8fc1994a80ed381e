"""The model that `KerasModel.state` wrote, from its bytes."""

from __future__ import annotations

import zipfile

import keras

from isobit.errors import IsobitError, ModelError
from isobit.files import temporary_folder
from isobit_tensorflow.model import KerasModel
from isobit_tensorflow.simulate.simulator import Simulator


def restore(state: bytes) -> KerasModel:
    """The model of a state. Raises ModelError for other bytes."""
    with temporary_folder() as folder:
        path = folder / "simulator.keras"
        path.write_bytes(state)
        if not zipfile.is_zipfile(path):
            raise ModelError("these bytes are no state of a Keras model: they are no .keras archive")
        try:
            simulator = keras.saving.load_model(path, compile=False, safe_mode=True)
        except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile, IsobitError) as error:
            raise ModelError(f"these bytes are no state of a Keras model: {error}") from error
    if not isinstance(simulator, Simulator):
        raise ModelError(f"the state holds a {type(simulator).__name__}, which is no simulator")
    return KerasModel(simulator)
