"""Writing a model as a file, and beside it the weights that one file cannot hold."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

from isobit_onnx.read.initializers import PROTOBUF_LIMIT, weight_bytes


def save_model(model: ir.Model, path: Path) -> None:
    """Write a model file; weights beyond the protobuf limit go beside it, into ``<name>.data``."""
    if weight_bytes(model) < PROTOBUF_LIMIT:
        onnx.save(ir.to_proto(model), path)
    else:
        ir.save(model, path, external_data=f"{path.name}.data")
