"""A backend in plain NumPy: `isobit.testing.interpreter` computes each node in float64. It writes no ONNX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isobit.backend import CheckedModel
from isobit.errors import ModelError
from isobit.graph import Graph
from isobit.graph_backend import GraphModel, Tap
from isobit.graph_backend.run_graph import run_tapped
from isobit.testing import interpreter

Array = np.ndarray[Any, Any]


class _AllOps(frozenset[str]):
    """What a graph may hold that is edited and never run."""

    def __contains__(self, op: object) -> bool:
        return True


class NumpyEngine:
    """Runs the graph node by node."""

    name, ops = "numpy", _AllOps(interpreter.OPS)

    def native(self, model: GraphModel) -> Graph:
        """The graph itself."""
        return model.graph

    def run(
        self, model: GraphModel, feeds: Mapping[str, Array], taps: Sequence[Tap]
    ) -> tuple[Mapping[str, Array], Sequence[Array]]:
        """Outputs, or tapped tensors."""
        rounders = {
            site: (lambda x: x) if site in model.off else lambda x, e=encoding: e.fake_quantize(x).astype(np.float64)
            for site, encoding in model.quantizers.items()
        }
        weights = {name: _working(value) for name, value in model.weights.items()}
        inputs = {name: _working(value) for name, value in feeds.items()}
        outputs, tapped = run_tapped(model.graph, interpreter.compute_all, weights, rounders, inputs, taps)
        return {name: value.astype(np.float32) for name, value in outputs.items()}, tapped

    def bounds(self, array: Array) -> tuple[float, float]:
        """The smallest and the largest element."""
        return float(array.min()), float(array.max())

    def to_onnx(self, model: GraphModel) -> Any:
        """It has no ONNX."""
        raise ModelError("models in NumPy are not written as ONNX")


def _working(value: Array) -> Array:
    return value.astype(np.float64) if value.dtype.kind == "f" else value


class NumpyModel(GraphModel):
    """A graph in canonical form and its constants: a user's model, and what the backend opens."""

    def __init__(self, graph: Graph, weights: Mapping[str, Array]) -> None:
        super().__init__(NumpyEngine(), graph, {name: np.array(weights[name]) for name in graph.weights})

    def copy(self) -> NumpyModel:
        """An independent copy."""
        copied = type(self)(self.graph, self.weights)
        copied.quantizers, copied.off = dict(self.quantizers), set(self.off)
        return copied


def checked(graph: Graph, weights: Mapping[str, Array]) -> CheckedModel:
    """A NumpyModel as techniques meet it."""
    return CheckedModel.of(NumpyModel(graph, weights))


class NumpyBackend:
    """Opens a `NumpyModel`."""

    name = framework = "numpy"
    install = "pip install numpy"
    suffixes = ()

    def accepts(self, model: object) -> int:
        """Only its own."""
        return 2 if isinstance(model, NumpyModel) else 0

    def open(self, model: NumpyModel, example_inputs: Any = None) -> NumpyModel:
        """A copy."""
        return model.copy()

    def restore(self, state: bytes) -> GraphModel:
        """What `GraphModel.state` wrote."""
        return GraphModel.restore(NumpyEngine(), state)
