"""The public conformance suite over the TensorFlow backend."""

from __future__ import annotations

import pytest

from isobit.testing.conformance import BackendConformance
from isobit_tensorflow.backend import TensorFlowBackend
from isobit_tensorflow.reference_networks import build_keras


class TestTensorFlow(BackendConformance):
    @pytest.fixture
    def backend(self):
        return TensorFlowBackend()

    @pytest.fixture
    def build(self):
        return build_keras
