"""The public conformance suite over the ONNX backend."""

from __future__ import annotations

import pytest

from isobit.testing.conformance import BackendConformance
from isobit_onnx.backend import OnnxBackend
from isobit_onnx.reference_networks import build_onnx


class TestOnnx(BackendConformance):
    @pytest.fixture
    def backend(self):
        return OnnxBackend()

    @pytest.fixture
    def build(self):
        return build_onnx
