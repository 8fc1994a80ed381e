"""ONNX's own inference of shapes and types, and what it leaves out of lookups."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as passes

from isobit_onnx.read.inference.group_norms import group_norms_as_instance_norms
from isobit_onnx.read.inference.lookups import describe_lookups
from isobit_onnx.read.inference.map_types import without_maps


def run_shape_inference(model: ir.Model) -> None:
    """Set every shape and type that can be told, in place; the others stay unknown."""
    with without_maps(model), group_norms_as_instance_norms(model):
        passes.ShapeInferencePass(check_type=False, strict_mode=False)(model)
        while describe_lookups(model.graph):
            passes.ShapeInferencePass(check_type=False, strict_mode=False)(model)
