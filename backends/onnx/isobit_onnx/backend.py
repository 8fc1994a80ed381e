"""OnnxBackend: the front door. Imports onnx and onnxruntime only when a model is opened."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobit.backend import device_of
from isobit.errors import IsobitError, PluginError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from isobit.backend import BackendModel, Batch, WrittenRun
    from isobit.encodings import Encodings
    from isobit.testing.networks import Network
    from isobit_onnx.model import OnnxModel
    from isobit_onnx.run.deployed import DeployedFile


class OnnxBackend:
    """Opens ONNX files, ``onnx.ModelProto`` and ``onnx_ir.Model``.

    `providers` are onnxruntime's, in order of preference, for ``QuantSim(model, backend=OnnxBackend(providers))``.
    Without any, models run on CUDA where onnxruntime-gpu finds it, else on the CPU.
    """

    name = "onnx"
    framework = "onnx"
    install = 'pip install "isobit[onnx-cpu]"'
    suffixes = (".onnx",)

    def __init__(self, providers: Sequence[str] = ()) -> None:
        self.providers = tuple(providers)

    def accepts(self, model: object) -> int:
        """2 for a path that ends in .onnx and for the model classes of onnx and onnx-ir."""
        if isinstance(model, str | os.PathLike):
            return 2 if os.fspath(model).lower().endswith(self.suffixes) else 0
        origin = f"{type(model).__module__}.{type(model).__name__}"
        return 2 if origin in ("onnx.onnx_ml_pb2.ModelProto", "onnx_ir.Model", "onnx_ir._core.Model") else 0

    def open(self, model: Any, example_inputs: Any = None) -> OnnxModel:
        """Open a model as a copy. Raises ModelError.

        ONNX models say their inputs, so no example is needed; with one, an If that sizes or settings decide is opened
        as the branch that the example takes.
        """
        self._require()
        from isobit_onnx.model import OnnxModel
        from isobit_onnx.read.checks.valid import refuse_as_runtime
        from isobit_onnx.read.read_model import read_model
        from isobit_onnx.run.conditions import ExampleConditions
        from isobit_onnx.run.session import chosen_providers

        chosen_providers(self.providers)  # a provider that is not there is refused before the model is read
        conditions = None if example_inputs is None else ExampleConditions(example_inputs)
        try:
            opened = OnnxModel(read_model(model, conditions.compute if conditions else None), self.providers)
        except IsobitError:
            raise
        except Exception as error:  # attributes without meaning, on which any step may fail
            refuse_as_runtime(model, error)
            raise
        opened.given, opened.conditions = model, conditions
        return opened

    def restore(self, state: bytes) -> OnnxModel:
        """The model that `OnnxModel.state` wrote."""
        self._require()
        from isobit_onnx.restore_state import restore

        return restore(state, self.providers)

    def write_qdq(self, model: BackendModel, encodings: Encodings, path: Path, *, runs_next: bool = False) -> list[str]:
        """Write the float model of any backend with `encodings` as a QDQ model; returns notes."""
        self._require(running=False)
        from isobit_onnx.export.export_qdq import write_qdq

        return write_qdq(model, encodings, path, runs_next=runs_next)

    def run_written(self, path: Path, batch: Batch) -> list[WrittenRun]:
        """Run a written QDQ model in each kind of session; nothing without onnxruntime."""
        if find_spec("onnxruntime") is None:
            return []
        from isobit_onnx.export.run_written import run_written

        return run_written(path, batch)

    def rounded(
        self, path: Path, batch: Batch, rounds: Iterable[Sequence[str]]
    ) -> Iterator[Mapping[str, tuple[NDArray[Any], NDArray[Any]]]]:
        """Tensors of a written QDQ model before and behind their quantizers; nothing without onnxruntime."""
        if find_spec("onnxruntime") is None:
            return iter(())
        from isobit_onnx.export.run_rounded import run_rounded

        return run_rounded(path, batch, rounds)

    def computed(self, path: Path, batch: Batch, names: Collection[str]) -> Mapping[str, NDArray[Any]]:
        """Tensors of a written QDQ model before their quantizers; nothing without onnxruntime."""
        if find_spec("onnxruntime") is None:
            return {}
        from isobit_onnx.export.run_rounded import run_computed

        return run_computed(path, batch, names)

    def deploy(self, path: Path, threads: int) -> DeployedFile | None:
        """A file in onnxruntime on the CPU; None without onnxruntime. Raises ModelError."""
        if find_spec("onnxruntime") is None:
            return None
        from isobit_onnx.run.deployed import DeployedFile

        return DeployedFile(path, threads)

    def files_of(self, path: Path) -> list[Path]:
        """An ONNX file and the files of its external weights."""
        self._require(running=False)
        from isobit_onnx.run.external_files import external_files

        return [path, *external_files(path)]

    def build_network(self, network: Network) -> Any:
        """A reference network as ``onnx.ModelProto``, for `isobit.testing`."""
        self._require(running=False)
        from isobit_onnx.reference_networks import build_onnx

        return build_onnx(network)

    def write_float(self, model: BackendModel, path: Path) -> None:
        """Write the float model of any backend as ONNX."""
        self._require(running=False)
        from isobit_onnx.export.export_qdq import write_float

        write_float(model, path)

    def device(self) -> str:
        """CUDA with onnxruntime-gpu and a driver."""
        return device_of(any(True for _ in distributions(name="onnxruntime-gpu")))

    def _require(self, *, running: bool = True) -> None:
        needed = ["onnx", "onnx_ir", "onnxscript", *(["onnxruntime"] if running else [])]
        missing = [name for name in needed if find_spec(name) is None]
        if missing:
            raise PluginError(f"backend 'onnx' needs {', '.join(missing)}: {self.install}")
