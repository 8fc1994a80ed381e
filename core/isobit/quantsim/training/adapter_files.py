"""The folder of one adapter: its weights and settings as peft has them, and the encodings beside it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.encodings.encoding import Encodings
from isobit.errors import ModelError
from isobit.files import is_file, write_folder
from isobit.formats import isobit_json
from isobit.graph.fingerprint import digest

_WEIGHTS, _SETTINGS, _ENCODINGS = "adapter_model.safetensors", "adapter_config.json", "encodings.json"
_BASE = "isobit_base"


@dataclass(frozen=True)
class AdapterFiles:
    """What the folder holds. `weights` have the names of peft; `base` tells the base's weights, or is empty."""

    weights: Mapping[str, NDArray[Any]]
    settings: Mapping[str, Any]
    encodings: Encodings
    base: str = ""

    def write(self, folder: Path) -> list[Path]:
        """Write it, whole or not at all; returns the paths. Raises OutputError."""
        from safetensors.numpy import save

        arrays = {name: np.ascontiguousarray(array) for name, array in self.weights.items()}
        with write_folder(folder) as staging:
            (staging / _WEIGHTS).write_bytes(save(arrays, {"format": "pt", _BASE: self.base}))
            (staging / _SETTINGS).write_text(json.dumps(dict(self.settings), indent=2), "utf-8")
            (staging / _ENCODINGS).write_text(isobit_json.dumps(self.encodings), "utf-8")
        return [folder / name for name in (_WEIGHTS, _SETTINGS, _ENCODINGS)]

    @classmethod
    def read(cls, folder: Path) -> AdapterFiles:
        """Read it; settings and encodings may be missing. Raises ModelError, and EncodingError for bad encodings."""
        from safetensors import safe_open

        path = folder / _WEIGHTS
        if not is_file(path):
            raise ModelError(f"{folder} holds no adapter: there is no {_WEIGHTS} in it")
        try:
            with safe_open(path, "np") as opened:
                metadata = opened.metadata() or {}
                weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            settings = folder / _SETTINGS
            read = json.loads(settings.read_text("utf-8")) if settings.is_file() else {}
        except Exception as error:  # the library raises its own kinds, and TypeError for types that NumPy lacks
            raise ModelError(f"{folder} holds no adapter that can be read: {error}") from error
        encodings = folder / _ENCODINGS
        loaded = isobit_json.IsobitJson().read(encodings) if encodings.is_file() else Encodings({})
        arrays = {name: np.asarray(array, np.float32) for name, array in weights.items()}
        odd = next((name for name, array in arrays.items() if not np.isfinite(array).all()), None)
        if odd is not None:
            raise ModelError(f"{path}: {odd!r} holds NaN or infinity")
        return cls(arrays, read, loaded, metadata.get(_BASE, ""))


def base_digest(fingerprint: Mapping[str, str], others: Collection[str]) -> str:
    """One hash of the weights of a base, by name; `others` are those of adapters."""
    hashes = {name: value for name, value in fingerprint.items() if name not in others and not name.startswith("(")}
    return digest(hashes)
