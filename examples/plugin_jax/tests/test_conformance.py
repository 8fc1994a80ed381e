"""The public conformance suite over the JAX backend."""

from __future__ import annotations

import pytest

from isobit.testing.conformance import BackendConformance
from isobit_jax.backend import JaxBackend
from networks import build_jax


class TestJax(BackendConformance):
    @pytest.fixture
    def backend(self):
        return JaxBackend()

    @pytest.fixture
    def build(self):
        return build_jax
