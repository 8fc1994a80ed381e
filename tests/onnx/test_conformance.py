"""The public conformance suite over the ONNX backend."""

from __future__ import annotations

import pytest

from isobit.testing.conformance import BackendConformance
from isobit.testing.conformance.export import check_export
from isobit_onnx.backend import OnnxBackend
from isobit_onnx.reference_networks import build_onnx


class TestOnnx(BackendConformance):
    @pytest.fixture
    def backend(self):
        return OnnxBackend()

    @pytest.fixture
    def build(self):
        return build_onnx

    @pytest.mark.parametrize("target", ["onnxruntime-cpu", "onnxruntime-cpu-transformer"])
    def test_every_network_for_every_target(self, opened, tmp_path, target):
        """The suite exports some of them alone, for the frameworks' exporters take seconds; what writes is the same."""
        check_export(opened, target, tmp_path)
