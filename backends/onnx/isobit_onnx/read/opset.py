"""The opset that every model of the backend has: older models are raised to it, new ones are written in it."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import version_converter

from isobit.errors import ModelError
from isobit_onnx.read.error_text import one_line
from isobit_onnx.read.inference.map_types import without_maps
from isobit_onnx.read.own_conversions import bring_back, set_aside

#: int4, int16 and blocks in QuantizeLinear exist from here on.
OPSET = 21
OLDEST_OPSET = 7


def raise_opset(model: ir.Model, where: str) -> None:
    """Raise the opset to the one that quantized types need, in place. Raises ModelError."""
    if model.opset_imports[""] < OPSET:
        before = model.opset_imports[""]
        set_aside(model, before)
        try:
            with without_maps(model):
                version_converter.ConvertVersionPass(OPSET, fallback=True)(model)
        except Exception as error:
            raise ModelError(f"{where}: opset {before} could not be raised to {OPSET}: {one_line(error)}") from error
        if model.opset_imports[""] < OPSET:
            raise ModelError(f"{where}: opset {before} could not be raised to {OPSET}: export it with a newer opset")
        bring_back(model)
    # IR version 10 is the one of opset 21; older runtimes read it, and the tensor types of Q/DQ need it.
    model.ir_version = max(model.ir_version or 0, 10)
