"""The public conformance suite over the JAX backend."""

from __future__ import annotations

import pytest
from networks import build_jax

from isobit.testing.conformance import BackendConformance
from isobit_jax.backend import JaxBackend


class TestJax(BackendConformance):
    @pytest.fixture
    def backend(self):
        return JaxBackend()

    @pytest.fixture
    def build(self):
        return build_jax
