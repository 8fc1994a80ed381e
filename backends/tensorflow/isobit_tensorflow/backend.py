"""TensorFlowBackend: the front door. Imports Keras and TensorFlow only when a model is opened."""

from __future__ import annotations

import os
import sys
from importlib.metadata import distributions
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from isobit.backend import device_of
from isobit.errors import ModelError, PluginError

if TYPE_CHECKING:
    from isobit.testing.networks import Network
    from isobit_tensorflow.model import KerasModel


class TensorFlowBackend:
    """Opens Keras 3 models, subclassed ones with an example batch, and the path of a ``.keras`` file."""

    name = "tensorflow"
    framework = "keras"  # also on another Keras backend: opening such a model says what to change
    install = 'pip install "isobit[tensorflow-cpu]"'
    suffixes: tuple[str, ...] = (".keras",)

    def accepts(self, model: object) -> int:
        """2 for Keras models (asked only of a Keras that is imported already) and for ``.keras`` paths."""
        if isinstance(model, str | os.PathLike):
            return 2 if os.fspath(model).endswith(self.suffixes) else 0
        keras = sys.modules.get("keras")
        return 2 if keras is not None and isinstance(model, keras.Model) else 0

    def open(self, model: Any, example_inputs: Any = None) -> KerasModel:
        """Read a copy of a model; only a subclassed one needs `example_inputs`. Raises ModelError."""
        self._require()
        from isobit_tensorflow.open_model import open_model

        return open_model(model, example_inputs)

    def restore(self, state: bytes) -> KerasModel:
        """The model that `KerasModel.state` wrote."""
        self._require()
        from isobit_tensorflow.restore_state import restore

        return restore(state)

    def build_network(self, network: Network) -> Any:
        """A reference network as ``keras.Model``, for `isobit.testing`."""
        self._require()
        from isobit_tensorflow.reference_networks import build_keras

        return build_keras(network)

    def device(self) -> str:
        """CUDA with NVIDIA's libraries, which ``isobit[tensorflow-cuda]`` brings, and a driver."""
        return device_of(any(True for kind in ("cu12", "cu13") for _ in distributions(name=f"nvidia-cudnn-{kind}")))

    def _require(self) -> None:
        for module, what in (("tensorflow", "TensorFlow"), ("keras", "Keras")):
            if find_spec(module) is None:
                raise PluginError(f"backend 'tensorflow' needs {what}: {self.install}")
        import keras

        if keras.backend.backend() != "tensorflow":
            raise ModelError(
                f"Keras runs on {keras.backend.backend()!r} here, and this backend simulates on TensorFlow: set "
                "KERAS_BACKEND=tensorflow before Keras is imported; the same model file loads there"
            )
