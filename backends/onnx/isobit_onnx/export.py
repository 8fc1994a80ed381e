"""Writing the deployable QDQ model of any backend's float model."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import onnx_ir as ir

from isobit.backend import BackendModel
from isobit.encoding import Encoding, Encodings
from isobit.sites import Tensor
from isobit_onnx.binding import bind, from_name_map
from isobit_onnx.model import OnnxModel
from isobit_onnx.qdq import insert_quantizers
from isobit_onnx.reading import infer_shapes, raise_opset
from isobit_onnx.session import save_model

_VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})

_SATURATION = (
    "on x86-64 processors without VNNI, run the exported model with the session option session.x64quantprecision=1: "
    "else onnxruntime's sums of uint8 x int8 products saturate there"
)


def write_qdq(model: BackendModel, encodings: Encodings, path: Path) -> list[str]:
    """Write `model` with `encodings` to `path`; returns what the reader should know.

    The file is loaded by onnxruntime before it counts as written, where onnxruntime is installed.
    """
    if isinstance(model, OnnxModel):
        float_model = model.float_model.clone()
        places = [(bind(float_model, model.translation, site), e) for site, e in encodings.items()]
        interior = _interior(model, encodings)
    else:
        proto, names = model.to_onnx()
        float_model = ir.from_proto(proto)
        raise_opset(float_model, "the exported model")
        places = [(from_name_map(names, site), e) for site, e in encodings.items()]
        interior = {}
    insert_quantizers(float_model, places, interior)
    infer_shapes(float_model)
    save_model(float_model, path)
    if find_spec("onnxruntime") is None:
        return ["the exported model was not checked: onnxruntime is not installed", _SATURATION]
    from isobit_onnx.checking import check_loads

    check_loads(path)
    return [_SATURATION]


def _interior(model: OnnxModel, encodings: Encodings) -> dict[str, Encoding]:
    """Values before a reshape inside one neutral node: the runtime's kernel for the rest ends there."""
    natives = {node.name: node for node in model.float_model.graph}
    found = {}
    for node in model.graph.nodes:
        if len(node.parts) < 2 or Tensor(node.outputs[0]) not in encodings:
            continue
        last = natives[node.parts[-1]]
        inner = last.inputs[0]
        if last.op_type in _VIEWS and inner is not None and inner.name:
            found[inner.name] = encodings[Tensor(node.outputs[0])]
    return found
