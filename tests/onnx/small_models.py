"""Small ONNX models for tests, and what onnxruntime makes of them as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from isobit_onnx.backend import OnnxBackend
from isobit_onnx.model import OnnxModel

MICROSOFT = "com.microsoft"


def constant(name: str, value: Any, dtype: Any = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def value(name: str, shape: Sequence[Any] | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def node(op: str, inputs: str, outputs: str, domain: str = "", **attributes: Any) -> onnx.NodeProto:
    """A node of names with spaces between them, ``-`` for one that is left out."""
    operands = ["" if name == "-" else name for name in inputs.split()]
    results = outputs.split()
    return helper.make_node(op, operands, results, f"n_{results[0]}", domain=domain, **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Mapping[str, Any],
    opset: int = 17,
) -> onnx.ModelProto:
    """A model; constants that are no protobufs are float32."""
    tensors = [v if isinstance(v, onnx.TensorProto) else constant(name, v) for name, v in constants.items()]
    domains = sorted({n.domain for n in nodes} - {""})
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), tensors)
    ir_version = 3 if opset < 9 else min(10, 5 + max(0, opset - 10))
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version)


def runtime(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of the user's own model, by name."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, dict(feeds)), strict=True))


def opened_alike(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray], atol: float = 2e-5) -> OnnxModel:
    """The opened model, after its outputs were found equal to those of the file as onnxruntime runs it."""
    expected = runtime(proto, feeds)
    opened = OnnxBackend().open(proto)
    outputs = opened.run(feeds)
    assert outputs.keys() == expected.keys()
    for name, array in expected.items():
        assert outputs[name].shape == array.shape, name
        np.testing.assert_allclose(outputs[name], array, atol=atol, rtol=1e-4, err_msg=name)
    return opened


def ops(opened: OnnxModel) -> list[str]:
    return [n.op for n in opened.graph.nodes]
