"""Writing the deployable QDQ model of any backend's float model."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import onnx_ir as ir

from isobit.backend import BackendModel
from isobit.encoding import Encodings
from isobit.sites import Tensor
from isobit_onnx.binding import bind, from_name_map
from isobit_onnx.completeness import check_complete
from isobit_onnx.model import OnnxModel
from isobit_onnx.qdq import insert_quantizers
from isobit_onnx.reading import infer_shapes, raise_opset
from isobit_onnx.session import save_model

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
        inner = model.inner_values().items()
        interior = {name: encodings[Tensor(tensor)] for name, tensor in inner if Tensor(tensor) in encodings}
    else:
        proto, names = model.to_onnx()
        float_model = ir.from_proto(proto)
        raise_opset(float_model, "the exported model")
        places = [(from_name_map(names, site), e) for site, e in encodings.items()]
        interior = {}
    insert_quantizers(float_model, places, interior)
    infer_shapes(float_model)
    save_model(float_model, path)
    check_complete(path, places, interior)
    if find_spec("onnxruntime") is None:
        return ["the exported model was not checked: onnxruntime is not installed", _SATURATION]
    from isobit_onnx.checking import check_loads

    check_loads(path)
    return [_SATURATION]


def write_float(model: BackendModel, path: Path) -> None:
    """Write the float model, with the names that `to_onnx` says."""
    proto, _ = model.to_onnx()
    save_model(ir.from_proto(proto), path)
