"""Whether each constant of a model holds as many bytes as its dims and its type say, before anything reads it."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path

import onnx
import onnx_ir as ir

from isobit.errors import ModelError
from isobit_onnx.read.error_text import first_line


def check_tensors(model: ir.Model, where: str) -> None:
    """Raise ModelError naming the file and the constant whose dims, type, data or external file do not fit."""
    for name, tensor in _tensors(model):
        at = f"{where}: the constant {_shown(name)}"
        try:
            shape, data_type = [int(n) for n in tensor.shape.numpy()], tensor.dtype
        except (TypeError, ValueError) as error:
            raise ModelError(f"{at}: its dims or its type are not valid: {first_line(error)}") from error
        if any(n < 0 for n in shape):
            raise ModelError(f"{at}: its dims {shape} hold a negative number")
        if isinstance(tensor, ir.ExternalTensor):
            _check_external(tensor, shape, at)
        elif isinstance(tensor, ir.TensorProtoTensor):
            _check_proto(tensor, shape, data_type, at)


def _tensors(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """Every constant, also of bodies and of functions, and those that are attributes."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.name or "", value.const_value
    for nodes in (model.graph.all_nodes(), *(function.all_nodes() for function in model.functions.values())):
        for node in nodes:
            for attribute in node.attributes.values():
                if isinstance(attribute, ir.Attr) and attribute.type == ir.AttributeType.TENSOR:
                    tensor: ir.TensorProtocol = attribute.value  # `as_tensor` asks for the size of any type
                    yield tensor.name or node.outputs[0].name or "", tensor


def _check_proto(tensor: ir.TensorProtoTensor, shape: list[int], data_type: ir.DataType, at: str) -> None:
    proto = tensor.raw
    if proto.data_location == onnx.TensorProto.EXTERNAL:
        raise ModelError(f"{at}: its data is in another file, where ONNX allows none")
    if proto.HasField("raw_data") and data_type not in (ir.DataType.UNDEFINED, ir.DataType.STRING):
        found, expected = len(proto.raw_data), _bytes(shape, data_type)
        if found != expected:
            raise ModelError(
                f"{at}: its dims {shape} of {data_type.name} take {expected} bytes, and it holds {found}: "
                "export the model again"
            )
        return
    fields = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
    if not proto.HasField("raw_data") and 0 not in shape and not any(len(getattr(proto, name)) for name in fields):
        raise ModelError(f"{at}: it holds no data, and its dims are {shape}: export the model again")
    try:  # what is held number by number is in the file as such: no more memory is taken than the file has
        tensor.numpy()
    except Exception as error:  # onnx-ir raises many kinds
        raise ModelError(
            f"{at}: its data does not fit its dims {shape} of {data_type.name}: {first_line(error)}"
        ) from error


def _check_external(tensor: ir.ExternalTensor, shape: list[int], at: str) -> None:
    location = str(tensor.location)
    if "\0" in location or not location:
        raise ModelError(f"{at}: {_shown(location)} is no name of an external data file")
    file = Path(tensor.path)
    try:
        size = file.stat().st_size if file.is_file() else None
    except OSError as error:  # a name that is too long, no permission
        raise ModelError(f"{at}: its external data file {_shown(location)} cannot be read: {error.strerror}") from error
    if size is None:
        raise ModelError(f"{at}: its external data file {_shown(location)} is missing in {str(file.parent)!r}")
    if tensor.dtype in (ir.DataType.UNDEFINED, ir.DataType.STRING):
        raise ModelError(f"{at}: external data cannot be of type {tensor.dtype.name}")
    start, expected = tensor.offset or 0, _bytes(shape, tensor.dtype)
    if start < 0 or (tensor.length is not None and tensor.length != expected):
        raise ModelError(
            f"{at}: its dims {shape} of {tensor.dtype.name} take {expected} bytes; external data of {tensor.length} "
            f"bytes from byte {start} does not fit"
        )
    if size < start + expected:
        raise ModelError(
            f"{at}: its external data file {_shown(location)} has {size} bytes and is shorter than the "
            f"{start + expected} that it needs: copy the file again"
        )
    try:  # maps the file, and looks whether it lies beside the model
        tensor.numpy()
    except Exception as error:  # onnx-ir raises many kinds
        raise ModelError(f"{at}: its external data cannot be read: {first_line(error)}") from error


def _bytes(shape: list[int], data_type: ir.DataType) -> int:
    return -(-prod(shape) * data_type.bitwidth // 8)


def _shown(name: str) -> str:
    """A name for the text of an error, cut where it is long."""
    return repr(name if len(name) <= 80 else f"{name[:77]}...")
