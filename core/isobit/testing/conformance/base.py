"""What the parts of the suite share: the two fixtures a backend provides, and opening a network with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from isobit.backend.checked_model import CheckedModel
from isobit.backend.contract import Backend
from isobit.graph.graph import Graph
from isobit.graph.isomorphism import correspondence
from isobit.testing import interpreter
from isobit.testing.networks import NETWORKS
from isobit.testing.networks.builder import Network

Build = Callable[[Network], Any]

#: Convolutions, depthwise and transposed ones; two inputs; attention; loops.
DIFFERING = ("inverted_residual", "upsampler", "two_inputs", "attention", "recurrent")

#: Models that were opened, and that nothing is done with but to be copied, by the network's name.
_opened: dict[tuple[type, type], dict[str, CheckedModel]] = {}


@dataclass(frozen=True)
class Opened:
    """A reference network and the backend's model of it."""

    network: Network
    model: CheckedModel

    def expected(self, batch: Mapping[str, NDArray[Any]], encodings: Any = None) -> dict[str, NDArray[Any]]:
        """Outputs by the NumPy interpreter on the model's own graph and constants."""
        return interpreter.outputs(self.model.graph, self.model.weight, batch, encodings)

    def weight_name(self, described: str) -> str:
        """What the model calls a constant of the description: the same, or where it is a part of a variable another."""
        if described in self.model.graph.weights:
            return described
        network, model = self.network, self.model
        pairs = correspondence(network.graph, model.graph, network.weights.__getitem__, model.weight)
        use = network.graph.uses(described)[0]
        reader = model.graph.producer(pairs[use.node.outputs[0]])
        name = reader.input(use.index) if reader is not None else None
        assert name is not None, described
        siblings = [info for info in model.graph.weights.values() if info.source == model.graph.weights[name].source]
        assert len(siblings) > 1, f"{described} is called {name}, and is no part of anything"
        return name


class ConformanceBase:
    """Base of the parts: a backend's test class overrides the first two fixtures."""

    @pytest.fixture
    def backend(self) -> Backend:
        """The backend under test."""
        raise TypeError("a conformance class must provide the fixture 'backend'")

    @pytest.fixture
    def build(self) -> Build:
        """How to build a reference network in the backend's framework."""
        raise TypeError("a conformance class must provide the fixture 'build'")

    @pytest.fixture
    def open_network(self, backend: Backend, build: Build) -> Callable[[str], Opened]:
        """Opens a reference network by name; from the second time on it is a copy of the model that was opened first.

        Opening is what takes longest in frameworks that trace a model for it.
        """
        kept = _opened.setdefault((type(self), type(backend)), {})

        def opened(name: str) -> Opened:
            network = NETWORKS[name]()
            if name in kept:
                return Opened(network, kept[name].copy())
            model = CheckedModel.of(backend.open(build(network), network.batch(2)))
            kept[name] = model.copy()
            return Opened(network, model)

        return opened

    @pytest.fixture(params=DIFFERING)
    def differing(self, request: pytest.FixtureRequest, open_network: Callable[[str], Opened]) -> Opened:
        """Networks that differ in their kinds of layers, for what does not depend on how these are connected."""
        return open_network(request.param)

    @pytest.fixture(params=sorted(NETWORKS))
    def opened(self, request: pytest.FixtureRequest, open_network: Callable[[str], Opened]) -> Opened:
        """Each reference network in turn."""
        return open_network(request.param)


def assert_close(actual: Mapping[str, Any], expected: Mapping[str, Any], tolerance: float = 1e-4) -> None:
    """Equal names, shapes, and values within `tolerance` of the largest magnitude."""
    assert set(actual) == set(expected)
    for name, value in expected.items():
        assert actual[name].shape == value.shape, name
        limit = tolerance * max(1.0, float(np.abs(value).max()))
        np.testing.assert_allclose(actual[name], value, rtol=0, atol=limit, err_msg=name)


def assert_same(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Equal to the last bit."""
    assert set(actual) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


def weight_names(graph: Graph) -> list[str]:
    """Constants that a weighted operation multiplies."""
    return [name for name in graph.weights if any(use.role == "weight" for use in graph.uses(name))]
