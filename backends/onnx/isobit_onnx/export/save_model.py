"""Writing a model as a file, and beside it the weights that one file cannot hold."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

from isobit_onnx.read.inference.map_types import put_back
from isobit_onnx.read.initializers import PROTOBUF_LIMIT, weight_bytes


def save_model(model: ir.Model, path: Path) -> None:
    """Write a model file; weights beyond the protobuf limit go beside it, into ``<name>.data``."""
    if weight_bytes(model) < PROTOBUF_LIMIT:
        proto = put_back(model, self_contained(model))
        _drop_repeated_types(proto.graph)
        onnx.save(proto, path)
    else:
        ir.save(model, path, external_data=f"{path.name}.data")


def _drop_repeated_types(graph: onnx.GraphProto) -> None:
    """Types and shapes of initializers stand in their tensors: said again, they take a tenth of some files."""
    held = {tensor.name for tensor in graph.initializer}
    others = [info for info in graph.value_info if info.name not in held]
    del graph.value_info[:]
    graph.value_info.extend(others)


def self_contained(model: ir.Model) -> onnx.ModelProto:
    """A model with its weights in it, as far as one protobuf can hold them.

    What lies in files beside the model that was opened would not be found from another folder.
    """
    external = any(isinstance(v.const_value, ir.ExternalTensor) for v in model.graph.initializers.values())
    if external and weight_bytes(model) < PROTOBUF_LIMIT:
        model = model.clone()
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):  # a copy: others may still read the file that is mapped
                value.const_value = ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=value.name)
    return ir.to_proto(model)
