"""JaxBackend: the front door. Imports JAX only when a model is opened."""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from typing import Any

from isobit.data import example_by_name
from isobit.errors import ModelError, PluginError
from isobit.graph_backend import DifferentiableGraphModel
from isobit_jax.native import JaxModel


class JaxBackend:
    """Opens a `JaxModel`; one batch of example inputs says the shapes of all axes but the first."""

    name = framework = "jax"
    install = "pip install isobit-jax jax"
    suffixes: tuple[str, ...] = ()

    def accepts(self, model: object) -> int:
        """2 for a `JaxModel`."""
        return 2 if isinstance(model, JaxModel) else 0

    def open(self, model: JaxModel, example_inputs: Any = None) -> DifferentiableGraphModel:
        """Trace the function with a symbolic batch size and read its jaxpr. Raises ModelError."""
        self._require()
        if not isinstance(model, JaxModel):
            raise ModelError(f"the JAX backend opens isobit_jax.JaxModel(function, params), not {type(model).__name__}")
        from isobit_jax.engine import JaxEngine
        from isobit_jax.reading import read

        names = list(inspect.signature(model.function).parameters)[1:]  # behind its parameters
        return DifferentiableGraphModel(JaxEngine(), *read(model, example_by_name(example_inputs, names)))

    def restore(self, state: bytes) -> DifferentiableGraphModel:
        """The model that `GraphModel.state` wrote."""
        self._require()
        from isobit_jax.engine import JaxEngine

        return DifferentiableGraphModel.restore(JaxEngine(), state)

    def _require(self) -> None:
        if find_spec("jax") is None:
            raise PluginError(f"backend 'jax' needs JAX: {self.install}")
