"""The public conformance suite over the PyTorch backend."""

from __future__ import annotations

import pytest

from isobit.testing.conformance import BackendConformance
from isobit_torch.backend import TorchBackend
from isobit_torch.reference_networks import build_torch


class TestTorch(BackendConformance):
    @pytest.fixture
    def backend(self):
        return TorchBackend()

    @pytest.fixture
    def build(self):
        return build_torch
