"""The float model as ONNX: the neutral graph itself, written by the ONNX backend, checked against the simulator.

Only operations outside the vocabulary go through tf2onnx, each as a frozen graph of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.util import find_spec
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from isobit.backend import NameMap
from isobit.backend.quiet_loggers import quiet_loggers
from isobit.errors import ModelError
from isobit.graph import Graph, Node
from isobit_onnx.read.opset import OPSET
from isobit_onnx.write.write_onnx import write_onnx
from isobit_tensorflow.kernels.operands import Operand
from isobit_tensorflow.kernels.table import compute
from isobit_tensorflow.simulate.simulator import Simulator

if TYPE_CHECKING:
    from onnx import ModelProto

#: The newest opset that tf2onnx 1.17 writes; onnx's version converter raises it.
_TF2ONNX_OPSET = 17

#: Open sizes of the random batch, in turn: one that crops 5,000 values at both ends needs more than the first.
_LENGTHS = (8, 64, 512, 4096, 32768)
_MOST_VALUES = 2**22  # of an input with open sizes


def to_onnx(simulator: Simulator, weight: Callable[[str], NDArray[Any]]) -> tuple[ModelProto, NameMap]:
    """The model, and where each site is in it; `weight` gives a constant in canonical layout.

    Raises ModelError where onnxruntime disagrees with TensorFlow.
    """
    graph = simulator.graph
    proto, names = write_onnx(graph, weight, lambda node: _converted(graph, node, weight))
    foreign = sorted({f"{n.domain}::{n.op_type}" for n in proto.graph.node if n.domain not in ("", "ai.onnx")})
    if foreign:
        raise ModelError(f"the export holds operations that are not ONNX's: {', '.join(foreign)}")
    if find_spec("onnxruntime") is not None:
        _check(simulator, proto)
    return proto, names


def _converted(graph: Graph, node: Node, weight: Callable[[str], NDArray[Any]]) -> ModelProto:
    """One Keras operation by way of a frozen TensorFlow graph."""
    import onnx
    from onnx import version_converter
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    names = [name for name in node.inputs if name is not None and name in graph.tensors]
    specs = [
        tf.TensorSpec([n if isinstance(n, int) else None for n in graph.tensors[name].shape or ()],
                      graph.tensors[name].dtype, f"in{index}")
        for index, name in enumerate(names)
    ]  # fmt: skip

    constants = {name: weight(name) for name in node.inputs if name is not None and name in graph.weights}

    def call(*tensors: tf.Tensor) -> list[tf.Tensor]:
        held = {
            **{name: tf.constant(array) for name, array in constants.items()},
            **dict(zip(names, tensors, strict=True)),
        }
        operands = [None if name is None else Operand(held[name]) for name in node.inputs]
        results = compute(node, operands)
        return [tf.identity(result.tensor, f"out{index}") for index, result in enumerate(results)]

    with quiet_loggers("tensorflow"):  # it warns of tables that it leaves as they are
        frozen = convert_variables_to_constants_v2(
            tf.function(call, autograph=False).get_concrete_function(*specs), lower_control_flow=False
        )
    try:
        import tf2onnx

        inputs = [f"in{index}:0" for index in range(len(names))]
        outputs = [tensor.name for tensor in frozen.outputs]
        # they tell a person who runs tf2onnx what is old in it, and what the errors below say better
        with quiet_loggers("tensorflow", "tf2onnx", level=logging.CRITICAL):
            proto, _ = tf2onnx.convert.from_graph_def(
                _known_ops(frozen.graph.as_graph_def()), input_names=inputs, output_names=outputs, opset=_TF2ONNX_OPSET
            )
    except ImportError as error:
        raise ModelError(f"node {node.name!r} ({node.op}) needs tf2onnx to be exported: pip install tf2onnx") from error
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"tf2onnx does not convert node {node.name!r} ({node.op}): {reason}") from error
    foreign = sorted({n.op_type for n in proto.graph.node if n.domain or n.op_type not in _onnx_ops()})
    if foreign:
        raise ModelError(
            f"tf2onnx leaves {', '.join(foreign)} of node {node.name!r} ({node.op}), which is not ONNX: run this layer "
            "ahead of the model, and quantize what is behind it, keras.Model(y, ...) from y = keras.Input(shape=...) on"
        )
    order = {name: place for place, name in enumerate(inputs)}
    entries = sorted(proto.graph.input, key=lambda value: order.get(value.name, len(order)))
    del proto.graph.input[:]
    proto.graph.input.extend(entries)
    converted: onnx.ModelProto = version_converter.convert_version(proto, OPSET)
    return converted


def _known_ops(graph: Any) -> Any:
    """A frozen graph, in place, without what tf2onnx has no words for: Erfc, as which TensorFlow computes GELU."""
    for node in [node for node in graph.node if node.op == "Erfc"]:
        kind = node.attr["T"].type
        erf, one = graph.node.add(), graph.node.add()
        erf.CopyFrom(node)
        erf.op, erf.name = "Erf", f"{node.name}/erf"
        one.op, one.name = "Const", f"{node.name}/one"
        one.attr["dtype"].type = kind
        one.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(1, tf.as_dtype(kind)))
        node.op = "Sub"
        node.input[:] = [one.name, erf.name]
    return graph


def _onnx_ops() -> set[str]:
    import onnx.defs

    return {schema.name for schema in onnx.defs.get_all_schemas()}


def _check(simulator: Simulator, proto: ModelProto) -> None:
    """Outputs of onnxruntime and of the float model on one random batch; they may differ by rounding.

    Nothing is compared where the model takes no such batch; the export compares files on the data of the calibration.
    """
    import onnxruntime

    batch, float_outputs = _random_batch(simulator)
    if not batch:
        return
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
        exported = session.run(None, batch)
    except Exception as error:
        text = " ".join(str(error).split())[:400]
        raise ModelError(f"onnxruntime does not run the exported model: {text}") from error
    for output, value in zip(session.get_outputs(), exported, strict=True):
        expected = float_outputs[output.name].astype(np.float64)
        if expected.shape != value.shape:
            raise ModelError(
                f"the export gives output {output.name!r} of shape {value.shape}, TensorFlow {expected.shape}"
            )
        if not np.all(np.isfinite(expected)):
            continue  # where the random inputs overflow, there is nothing to compare
        worst = float(np.abs(expected - value).max(initial=0.0))
        if worst > 1e-2 * max(1.0, float(np.abs(expected).max(initial=0.0))):
            raise ModelError(f"the export differs from TensorFlow by {worst:.3g} at output {output.name!r}")


def _random_batch(simulator: Simulator) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """A batch that the float model takes, with the shortest of the open lengths, and its outputs; else nothing."""
    graph = simulator.graph
    shapes = {name: graph.tensors[name].shape or () for name in graph.inputs}
    is_open = any(not isinstance(n, int) for shape in shapes.values() for n in shape[1:])
    for length in _LENGTHS if is_open else _LENGTHS[:1]:
        rng = np.random.default_rng(0)
        batch = {}
        for name, shape in shapes.items():
            dtype = graph.tensors[name].dtype
            sizes = [n if isinstance(n, int) else 2 if axis == 0 else length for axis, n in enumerate(shape)]
            if length > _LENGTHS[0] and prod(sizes) > _MOST_VALUES:
                return {}, {}
            values = rng.standard_normal(sizes) if dtype == "float32" else rng.integers(0, 2, sizes)
            batch[name] = values.astype(dtype)
        try:
            outputs = simulator.run_named(batch, rounding={})
        except ModelError:
            continue
        arrays = {name: np.asarray(value.numpy()) for name, value in outputs.items()}
        if all(array.size for array in arrays.values()):
            return batch, arrays
    return {}, {}
