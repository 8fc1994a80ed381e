"""The entry point: registers the backend and imports no framework."""

from __future__ import annotations

from collections.abc import Sequence

from isobit.plugins import hookimpl
from isobit_torch.backend import TorchBackend


@hookimpl
def isobit_backends() -> Sequence[TorchBackend]:
    """The PyTorch backend."""
    return [TorchBackend()]
