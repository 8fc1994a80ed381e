"""Reading any valid ONNX model and bringing it to the form that the backend works on.

That form: one opset (21 or newer), no functions, no Constant nodes, every node and value with a unique name, views of
constants carried out, shapes inferred. The names of the user's initializers are kept.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript import optimizer

from isobit.backend.quiet_loggers import quiet_loggers
from isobit.errors import ModelError
from isobit.graph.free_name import take_name
from isobit_onnx.read.all_axes import name_all_axes
from isobit_onnx.read.bodies.branches import Conditions, lift_weights, take_branches
from isobit_onnx.read.bodies.unroll_loops import unroll_loops
from isobit_onnx.read.checks.channels import check_channels
from isobit_onnx.read.checks.declared import check_inputs, forget_impossible_sizes
from isobit_onnx.read.checks.other_files import what_else
from isobit_onnx.read.checks.tensors import check_tensors
from isobit_onnx.read.checks.valid import check_valid
from isobit_onnx.read.constant_expressions import FOLD_LIMIT, VIEWS, fold_expressions
from isobit_onnx.read.constant_outputs import hand_on_constants
from isobit_onnx.read.einsum import expand_einsums, split_einsums
from isobit_onnx.read.error_text import first_line
from isobit_onnx.read.fused.fused_ops import expand_fused
from isobit_onnx.read.fused.stored_weights import QDQ, quantizes_activations, widen_stored_weights
from isobit_onnx.read.inference.map_types import from_proto, load_file
from isobit_onnx.read.inference.shape_inference import run_shape_inference
from isobit_onnx.read.initializers import SMALL_TENSOR, describe
from isobit_onnx.read.linear_forms import unify_products
from isobit_onnx.read.opset import OLDEST_OPSET, raise_opset
from isobit_onnx.read.pooling import count_windows
from isobit_onnx.read.recurrent.join_weights import join_weights, joins_weights
from isobit_onnx.read.recurrent.split_directions import split_directions
from isobit_onnx.read.transposes.cancel_transposes import cancel_transposes
from isobit_onnx.read.unused_nodes import remove_unused
from isobit_onnx.read.wide_floats import widen_floats

#: Passes log what they leave alone; the report says it better.
_PASS_LOGGERS = ("onnx_ir", "onnxscript")

#: Types whose protobufs hold the bytes of a NumPy array.
_PLAIN = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.INT64, ir.DataType.INT32})


def read_model(source: Any, conditions: Conditions | None = None) -> ir.Model:
    """A prepared copy of a model given as path, ModelProto or onnx_ir.Model. Raises ModelError.

    `conditions` computes conditions of If for an example; without it, what constants do not decide stays an If.
    """
    where = repr(os.fspath(source)) if isinstance(source, str | os.PathLike) else "the model"
    model = _load(source, where)
    _check(model, where, source)
    return prepare(model, where, conditions)


def _load(source: Any, where: str) -> ir.Model:
    if isinstance(source, ir.Model):
        return source.clone()
    if isinstance(source, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(source)
        return _deserialized(copy, where)
    if not isinstance(source, str | os.PathLike):
        kind = type(source).__name__
        raise ModelError(f"the ONNX backend opens paths, onnx.ModelProto and onnx_ir.Model, not {kind}")
    path = Path(source)
    try:
        if not path.is_file():
            problem = "is a folder: give the .onnx file in it" if path.is_dir() else "does not exist"
            raise ModelError(f"model file {where} {problem}")
    except OSError as error:  # a name that is too long
        raise ModelError(f"model file {where[:200]} cannot be read: {error.strerror}") from error
    try:
        other = what_else(path)
        if other is not None:
            raise ModelError(f"{where} {other}")
        with quiet_loggers(*_PASS_LOGGERS):
            return load_file(path)
    except OSError as error:
        raise ModelError(f"model file {where} cannot be read: {error.strerror or error}") from error
    except ModelError:
        raise
    except Exception as error:  # protobuf and onnx-ir raise many kinds
        raise ModelError(f"{where} is not an ONNX model, or is truncated: {first_line(error)}") from error


def _deserialized(proto: onnx.ModelProto, where: str) -> ir.Model:
    try:
        with quiet_loggers(*_PASS_LOGGERS):
            return from_proto(proto)
    except Exception as error:
        raise ModelError(f"{where} is not a valid ONNX model: {first_line(error)}") from error


def _check(model: ir.Model, where: str, source: Any) -> None:
    _use_one_name_for_onnx(model)
    if not len(model.graph.outputs) or "" not in model.opset_imports:
        raise ModelError(f"{where} is not an ONNX model, or is truncated: it has no outputs or no opset")
    quantized = quantizes_activations(model)
    if quantized is not None:
        raise ModelError(
            f"{where} is quantized already (it holds {quantized}): start from the float model that it was made from"
            + (", to which sim.load_encodings() of this file gives its grids" if quantized in QDQ else "")
        )
    opset = model.opset_imports[""]
    if opset < OLDEST_OPSET:
        raise ModelError(f"{where} has opset {opset}; isobit reads {OLDEST_OPSET} and newer: export it again")
    newest = onnx.defs.onnx_opset_version()
    if opset > newest:
        raise ModelError(
            f"{where} has opset {opset}, and onnx {onnx.__version__} knows {newest} at most: export it with an older "
            "opset, or install a newer onnx"
        )
    check_inputs(model, where)
    check_tensors(model, where)
    check_valid(model, where, source)


def _use_one_name_for_onnx(model: ir.Model) -> None:
    """ONNX's own domain has two names, ``ai.onnx`` and none."""
    if "ai.onnx" in model.opset_imports:
        model.opset_imports.setdefault("", model.opset_imports.pop("ai.onnx"))
    for graph in model.graphs():
        for node in graph:
            node.domain = "" if node.domain == "ai.onnx" else node.domain


def prepare(model: ir.Model, where: str = "the model", conditions: Conditions | None = None) -> ir.Model:
    """Bring a loaded model to the backend's form, in place. Raises ModelError."""
    hold_weights(model)
    forget_impossible_sizes(model)
    declared = [None if value.shape is None else value.shape.copy() for value in model.graph.outputs]
    with quiet_loggers(*_PASS_LOGGERS), np.errstate(all="ignore"):  # masks are logarithms of zero
        _run(passes.RemoveInitializersFromInputsPass(), model)
        _run(passes.InlinePass(), model)
        _run(passes.TopologicalSortPass(), model)
        widen_stored_weights(model)
        widen_floats(model)
        run_shape_inference(model)
        raise_opset(model, where)
        run_shape_inference(model)
        count_windows(model, declared, infer_shapes)
        _run(passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0), model)
        check_channels(model, where)
        take_branches(model, conditions, infer_shapes)
        while unroll_loops(model):
            infer_shapes(model)
            take_branches(model, conditions, infer_shapes)
        lift_weights(model)
        expand_fused(model, infer_shapes)
        name_all_axes(model)
        split_directions(model)
        fold_views(model)  # before constant folding, which would give the results new names
        fold_expressions(model)
        fold_views(model)
        optimizer.fold_constants(
            model, input_size_limit=FOLD_LIMIT, output_size_limit=FOLD_LIMIT, should_fold=_should_fold
        )
        _run(passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0), model)
        lift_weights(model)  # those that a body made of others, by a Transpose for example
        join_weights(model)
        if split_einsums(model):
            infer_shapes(model)
        if expand_einsums(model):
            infer_shapes(model)
        unify_products(model)
        remove_no_ops(model)
        remove_unused(model)
        cancel_transposes(model)
        hand_on_constants(model)
        _name_everything(model)
        _run(passes.TopologicalSortPass(), model)
    return infer_shapes(model)


def hold_weights(model: ir.Model) -> None:
    """Keep the weights as arrays, in place: a protobuf copies its bytes whenever they are looked at."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        # Small ones are settings of operations: shape inference looks at them, and only in the model itself.
        is_small = isinstance(tensor, ir.ExternalTensor) and tensor.nbytes <= SMALL_TENSOR
        if (is_small or isinstance(tensor, ir.TensorProtoTensor)) and tensor is not None and tensor.dtype in _PLAIN:
            value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name)


def infer_shapes(model: ir.Model) -> ir.Model:
    """Run ONNX shape inference in place; shapes it cannot tell stay unknown."""
    with quiet_loggers(*_PASS_LOGGERS):
        run_shape_inference(model)
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            describe(value, value.const_value)
    for node in model.graph:
        _infer_type(node, model.opset_imports)
    return model


def _infer_type(node: ir.Node, opsets: Mapping[str, int]) -> None:
    """The type of input 0, where ONNX says that output 0 has it and its inference tells the shape alone."""
    source, result = node.inputs[0] if node.inputs else None, node.outputs[0]
    if result.type is not None or source is None or source.type is None:
        return
    if not onnx.defs.has(node.op_type, opsets.get(node.domain, 0), node.domain):
        return
    schema = onnx.defs.get_schema(node.op_type, opsets[node.domain], node.domain)
    if schema.outputs[0].type_str == schema.inputs[0].type_str:
        result.type = source.type


def _run(step: Any, model: ir.Model) -> None:
    step(model)


def fold_views(model: ir.Model) -> None:
    """Carry out views and casts of a constant that has no other reader; the result keeps the constant's name."""
    for node in list(model.graph):
        if node.op_type not in VIEWS or node.domain or not node.inputs or node.outputs[0].is_graph_output():
            continue
        source = node.inputs[0]
        if source is None or not source.is_initializer() or source.const_value is None or len(source.uses()) > 1:
            continue
        viewed = _viewed(node, source.const_value)
        if viewed is None:
            continue
        output = node.outputs[0]
        source.const_value = viewed
        describe(source, viewed)
        ir.convenience.replace_all_uses_with(output, source)
        model.graph.remove(node, safe=True)


def remove_no_ops(model: ir.Model) -> None:
    """Remove a Reshape from one axis to one axis, which shape inference cannot follow, and a Slice of everything."""
    for node in list(model.graph):
        if node.domain or node.op_type not in ("Reshape", "Slice") or node.outputs[0].is_graph_output():
            continue
        source, *operands = node.inputs
        tensors = [None if value is None else value.const_value for value in operands]
        settings = [tensor.numpy() for tensor in tensors if tensor is not None]
        if source is None or source.shape is None or len(settings) != len(tensors):
            continue
        if any(array.ndim != 1 for array in settings):  # what runs it says what is wrong with it
            continue
        one_axis = node.op_type == "Reshape" and len(source.shape) == 1 and settings[0].tolist() == [-1]
        if one_axis or (node.op_type == "Slice" and _takes_all(source.shape, *(array.tolist() for array in settings))):
            ir.convenience.replace_all_uses_with(node.outputs[0], source)
            model.graph.remove(node, safe=True)


def _takes_all(
    shape: ir.Shape, starts: list[int], ends: list[int], axes: list[int] | None = None, steps: list[int] | None = None
) -> bool:
    chosen, strides = axes or range(len(starts)), steps or [1] * len(starts)
    if not len(starts) == len(ends) == len(chosen) == len(strides):
        return False
    if not all(-len(shape) <= axis < len(shape) for axis in chosen):
        return False
    sizes = [shape[axis] for axis in chosen]
    reached = (isinstance(size, int) and end >= size for size, end in zip(sizes, ends, strict=True))
    return all(start == 0 for start in starts) and all(step == 1 for step in strides) and all(reached)


def _should_fold(node: ir.Node) -> bool | None:
    """Views of a shared constant stay nodes: folded, one weight would be two. None leaves it to the pass."""
    if joins_weights(node):  # constant folding would give the results new names
        return False
    source = node.inputs[0] if node.inputs else None
    shared = node.op_type in VIEWS and source is not None and source.is_initializer() and len(source.uses()) > 1
    return False if shared and source is not None and source.dtype == ir.DataType.FLOAT else None


def _viewed(node: ir.Node, tensor: ir.TensorProtocol) -> ir.TensorProtocol | None:
    if node.op_type == "Identity":
        return tensor
    array = tensor.numpy()
    if node.op_type == "Transpose":
        perm = node.attributes["perm"].as_ints() if "perm" in node.attributes else None
        return ir.Tensor(np.ascontiguousarray(array.transpose(perm)), dtype=tensor.dtype, name=tensor.name)
    if node.op_type == "Cast":
        target = ir.DataType(node.attributes["to"].as_int())
        if target == tensor.dtype:
            return tensor
        if target != ir.DataType.FLOAT:
            return None
        return ir.Tensor(array.astype(np.float32), name=tensor.name)
    shape = node.outputs[0].shape
    sizes = [n for n in shape if isinstance(n, int)] if shape is not None else []
    if shape is None or len(sizes) != len(shape):
        return None
    return ir.Tensor(array.reshape(sizes), dtype=tensor.dtype, name=tensor.name)


def _name_everything(model: ir.Model) -> None:
    """Unique names for all nodes, apart from the names of constants and inputs too: the core has one name space."""
    passes.NameFixPass()(model)
    taken = {value.name or "" for value in model.graph.inputs} | set(model.graph.initializers)
    for node in model.graph:
        node.name = take_name(node.name or node.outputs[0].name or node.op_type, taken, "#")
