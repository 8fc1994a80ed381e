"""ONNX's own inference of shapes and types, and what it leaves out: lookups, sequences, foreign operators."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as passes

from isobit_onnx.read.inference.foreign_ops import describe_foreign
from isobit_onnx.read.inference.group_norms import group_norms_as_instance_norms
from isobit_onnx.read.inference.lookups import describe_lookups
from isobit_onnx.read.inference.map_types import without_maps
from isobit_onnx.read.inference.sequences import describe_sequences


def run_shape_inference(model: ir.Model) -> None:
    """Set every shape and type that can be told, in place; the others stay unknown."""
    with without_maps(model), group_norms_as_instance_norms(model):
        _infer(model)
        while describe_lookups(model.graph) or describe_foreign(model):
            _infer(model)


def _infer(model: ir.Model) -> None:
    passes.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    describe_sequences(model)
