"""TorchBackend: the front door. Imports torch only when a model is opened."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobit.backend import device_of
from isobit.errors import PluginError

if TYPE_CHECKING:
    from isobit.testing.networks import Network
    from isobit_torch.model import TorchModel


class TorchBackend:
    """Opens ``torch.nn.Module``."""

    name = "torch"
    framework = "torch"
    install = 'pip install "isobit[torch-cpu]"'
    suffixes: tuple[str, ...] = ()

    def accepts(self, model: object) -> int:
        """2 for modules; asked only of a torch that is imported already, which it is if the model is a module."""
        torch = sys.modules.get("torch")
        return 2 if torch is not None and isinstance(model, torch.nn.Module) else 0

    def open(self, model: Any, example_inputs: Any = None) -> TorchModel:
        """Capture a copy of a module with one batch of its inputs. Raises ModelError."""
        self._require()
        from isobit_torch.open_module import open_module

        return open_module(model, example_inputs)

    def restore(self, state: bytes) -> TorchModel:
        """The model that `TorchModel.state` wrote."""
        self._require()
        from isobit_torch.restore_state import restore

        return restore(state)

    def build_network(self, network: Network) -> Any:
        """A reference network as ``torch.nn.Module``, for `isobit.testing`."""
        self._require()
        from isobit_torch.reference_networks import build_torch

        return build_torch(network)

    def device(self) -> str:
        """CUDA with a CUDA build, which says so in a file of its own, and a driver."""
        spec = find_spec("torch")
        version = Path(spec.origin).with_name("version.py") if spec is not None and spec.origin else None
        built = version is not None and version.is_file() and re.search(r"^cuda\b.*= ['\"]", version.read_text(), re.M)
        return device_of(bool(built))

    def _require(self) -> None:
        if find_spec("torch") is None:
            raise PluginError(f"backend 'torch' needs PyTorch: {self.install}")
