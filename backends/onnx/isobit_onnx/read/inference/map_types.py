"""Maps, which classifiers of scikit-learn return (ZipMap): onnx-ir has no type for them, and runtimes need none.

Their types are set aside while a file is read, and put back into what is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir as ir

from isobit_onnx.read.inference.sparse_initializers import make_dense

_ASIDE = "isobit.type"


def load_file(path: Path) -> ir.Model:
    """A model of a file; weights in files beside it are mapped when they are looked at. Raises what onnx raises."""
    model = from_proto(onnx.load(path, load_external_data=False))
    ir.external_data.set_base_dir(model.graph, path.parent)
    return model


def from_proto(proto: onnx.ModelProto) -> ir.Model:
    """A model of a protobuf, which is changed. Raises what onnx-ir raises."""
    make_dense(proto)
    aside = _set_map_types_aside(proto)
    model = ir.from_proto(proto)
    for value in model.graph.outputs:
        if value.name in aside:
            value.meta[_ASIDE] = aside[value.name]
    return model


def _set_map_types_aside(proto: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    """Take the types of values that hold maps out of a model, in place; returns them by the name of the value."""
    aside = {}
    for value in (*proto.graph.output, *proto.graph.value_info):
        if _holds_map(value.type):
            kept = onnx.TypeProto()
            kept.CopyFrom(value.type)
            aside[value.name] = kept
            value.ClearField("type")
    return aside


def put_back(model: ir.Model, proto: onnx.ModelProto) -> onnx.ModelProto:
    """Give the outputs of a serialized model the types that its values remember, in place."""
    for value, output in zip(model.graph.outputs, proto.graph.output, strict=True):
        if _ASIDE in value.meta:
            output.type.CopyFrom(value.meta[_ASIDE])
    return proto


@contextmanager
def without_maps(model: ir.Model) -> Iterator[None]:
    """Leave nodes that make maps out of a model, in place, and put them back: onnx would give them their types again.

    Nothing but outputs of the model reads a map. Meanwhile its graph may be made anew, with the same names; what the
    nodes read are its outputs, since onnx drops what nobody reads.
    """
    outputs = list(model.graph.outputs)
    maps = [n for n in model.graph if n.op_type == "ZipMap" and not any(value.uses() for value in n.outputs)]
    kept = [value for value in outputs if value.producer() not in maps]
    read = [value for node in maps for value in node.inputs if value is not None and value not in kept]
    model.graph.outputs[:] = [*kept, *dict.fromkeys(read)]
    model.graph.remove(maps)
    try:
        yield
    finally:
        graph = model.graph
        values = ir.convenience.create_value_mapping(graph) if maps else {}
        for node in maps:
            for index, value in enumerate(node.inputs):
                if value is not None:
                    node.replace_input_with(index, values[value.name or ""])
        graph.extend(maps)
        rest = iter(list(graph.outputs))
        graph.outputs[:] = [value if value.producer() in maps else next(rest) for value in outputs]


def _holds_map(kind: onnx.TypeProto) -> bool:
    while kind.HasField("sequence_type") or kind.HasField("optional_type"):
        kind = kind.sequence_type.elem_type if kind.HasField("sequence_type") else kind.optional_type.elem_type
    return bool(kind.HasField("map_type"))
