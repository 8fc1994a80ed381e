"""onnxruntime sessions of onnx-ir models, also of those too large for one protobuf."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from isobit.errors import ModelError, PluginError, did_you_mean
from isobit_onnx.reading import LARGE

EXTERNAL = "weights.bin"


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers."""
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


class Session:
    """Runs a model in float: QDQ pairs are computed as they are written, never fused into integer kernels."""

    def __init__(self, model: ir.Model, providers: Sequence[str] = (), *, plan_memory: bool = True) -> None:
        """`providers` are onnxruntime's, in order of preference; without any, CUDA where it is there, then the CPU.

        `plan_memory` reserves all tensors of a run at once: faster, but larger where many outputs leave.
        """
        chosen = chosen_providers(providers)
        options = onnxruntime.SessionOptions()
        options.enable_mem_pattern = plan_memory
        options.log_severity_level = 3
        # Fused integer kernels round elsewhere; a simulator rounds at its quantizers and nowhere else.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            self._session = self._open(model, options, chosen)
        except Exception as error:  # onnxruntime raises its own kinds
            raise ModelError(f"onnxruntime cannot run the model: {_short(error)}") from error
        self.output_names = [output.name for output in self._session.get_outputs()]

    def _open(self, model: ir.Model, options: Any, providers: list[str]) -> Any:
        if weight_bytes(model) < LARGE:
            return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=providers)
        # The session maps or copies the weights while it is made, so the folder can go afterwards.
        with tempfile.TemporaryDirectory(prefix="isobit-") as folder:
            path = Path(folder) / "model.onnx"
            ir.save(model, path, external_data=EXTERNAL)
            return onnxruntime.InferenceSession(str(path), options, providers=providers)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """All outputs by name. Raises ModelError."""
        try:
            values = self._session.run(None, dict(feeds))
        except Exception as error:
            raise ModelError(f"onnxruntime failed on a batch: {_short(error)}") from error
        return {name: np.asarray(value) for name, value in zip(self.output_names, values, strict=True)}


def chosen_providers(wanted: Sequence[str] = ()) -> list[str]:
    """The providers to run on. Raises PluginError for one that the installed onnxruntime does not have."""
    available = onnxruntime.get_available_providers()
    for name in wanted:
        if name not in available:
            hint = did_you_mean(name, available) or '; for CUDA: pip install "isobit[onnx-cuda]"'
            raise PluginError(f"onnxruntime has no provider {name!r}{hint}; it has {', '.join(available)}")
    return list(wanted) or [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


def save_model(model: ir.Model, path: Path) -> None:
    """Write a model file; weights beyond the protobuf limit go beside it, into ``<name>.data``."""
    if weight_bytes(model) < LARGE:
        onnx.save(ir.to_proto(model), path)
    else:
        ir.save(model, path, external_data=f"{path.name}.data")
