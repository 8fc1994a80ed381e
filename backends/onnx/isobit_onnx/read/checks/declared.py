"""What a file declares of its values: inputs that arrays can be fed to, and sizes that arrays can have."""

from __future__ import annotations

import onnx_ir as ir

from isobit.errors import ModelError

#: Types of which users can make arrays that onnxruntime reads, and texts.
_FED = frozenset(
    {
        ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BOOL,
        ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT8,
        ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64, ir.DataType.COMPLEX64, ir.DataType.COMPLEX128,
        ir.DataType.STRING,
    }
)  # fmt: skip


def check_inputs(model: ir.Model, where: str) -> None:
    """Raise ModelError naming the first input of which nobody can make an array, so that no data could be given."""
    for value in model.graph.inputs:
        if value.is_initializer():
            continue
        at = f"{where}: the input {value.name!r}"
        if not isinstance(value.type, ir.TensorType):
            kind = "of no type" if value.type is None else f"a {type(value.type).__name__.removesuffix('Type').lower()}"
            raise ModelError(
                f"{at} is {kind}, and isobit feeds models with arrays: export the model with tensors as inputs"
            )
        if value.dtype not in _FED:
            name = "unknown" if value.dtype is None else value.dtype.name
            raise ModelError(
                f"{at} takes {name}, for which there are no arrays that onnxruntime reads: export the model with an "
                "input of float32 and a Cast behind it"
            )


def forget_impossible_sizes(model: ir.Model) -> None:
    """Let declared sizes of 0 and below be unknown, in place: exporters write them where they do not know a size."""
    graph = model.graph
    for value in (*graph.inputs, *graph.outputs, *(value for node in graph for value in node.outputs)):
        if value.shape is not None and any(isinstance(size, int) and size <= 0 for size in value.shape):
            value.shape = ir.Shape([None if isinstance(n, int) and n <= 0 else n for n in value.shape])
