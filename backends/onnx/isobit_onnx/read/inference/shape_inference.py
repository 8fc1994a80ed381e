"""ONNX's own inference of shapes and types, and what it leaves out: lookups, sequences, foreign operators."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import onnx_ir as ir

from isobit_onnx.read.inference.foreign_ops import describe_foreign
from isobit_onnx.read.inference.group_norms import group_norms_as_instance_norms
from isobit_onnx.read.inference.lookups import describe_lookups
from isobit_onnx.read.inference.map_types import without_maps
from isobit_onnx.read.inference.sequences import describe_sequences
from isobit_onnx.read.initializers import SMALL_TENSOR

logger = logging.getLogger(__name__)


def run_shape_inference(model: ir.Model) -> None:
    """Set every shape and type that can be told, in place; the others stay unknown."""
    with without_maps(model), group_norms_as_instance_norms(model):
        _infer(model)
        while describe_lookups(model.graph) or describe_foreign(model):
            _infer(model)


def _infer(model: ir.Model) -> None:
    try:
        with _constants_as_inputs(model):
            proto = ir.to_proto(model)
        # Values of small constants are looked at: they are the shapes and axes of other operations.
        proto = onnx.shape_inference.infer_shapes(proto, check_type=False, strict_mode=False, data_prop=True)
    except Exception as error:  # onnx and onnx-ir raise their own kinds; nothing is told then
        logger.debug("onnx infers no shapes: %s", error)
    else:
        _take(model, ir.from_proto(proto))
    describe_sequences(model)


def _take(model: ir.Model, inferred: ir.Model) -> None:
    """Give the values of a model the shapes and types that those of the same name have in another."""
    for graph, other in zip(model.graphs(), inferred.graphs(), strict=True):
        told = ir.convenience.create_value_mapping(other)
        for name, value in ir.convenience.create_value_mapping(graph).items():
            found = told.get(name)
            if found is None:
                continue
            if found.shape is not None and found.shape != value.shape:
                value.shape = found.shape
            if found.dtype is not None and found.dtype != value.dtype:
                value.dtype = found.dtype


@contextmanager
def _constants_as_inputs(model: ir.Model) -> Iterator[None]:
    """Let the initializers be inputs too, so that a model can be written without the values of large ones, in place.

    onnx-ir (1.1) has a pass for this, which looks through all inputs for each of them: with 40,000 initializers, as a
    chain of 10,000 nodes has with its quantizers, it took three times as long as the inference.
    """
    graph = model.graph
    inputs, constants = list(graph.inputs), {name: (v, v.const_value) for name, v in graph.initializers.items()}
    known = set(inputs)
    for value, tensor in constants.values():
        if tensor is not None:
            value.shape = ir.Shape(tensor.shape.numpy()) if value.shape is None else value.shape
            value.dtype = tensor.dtype if value.dtype is None else value.dtype
    graph.inputs.extend(value for value, _ in constants.values() if value not in known)
    for name, (value, tensor) in constants.items():
        if tensor is None or tensor.nbytes > SMALL_TENSOR:
            value.const_value = None
            del graph.initializers[name]
    try:
        yield
    finally:
        for value, tensor in constants.values():
            value.const_value = tensor
            graph.initializers[value.name or ""] = value
        graph.inputs[:] = inputs
