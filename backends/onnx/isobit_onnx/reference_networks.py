"""A network of `isobit.testing.networks` as an ONNX model, written the way exporters write it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from isobit.graph import Node, TensorInfo, conv_transpose_layout, to_native
from isobit.testing.networks import Network

_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


def build_onnx(network: Network, opset: int = 21) -> onnx.ModelProto:
    """The network at `opset` (13 or newer); node and initializer names are the network's, axis 0 is dynamic."""
    return _Builder(network, opset).build()


class _Builder:
    def __init__(self, network: Network, opset: int) -> None:
        self.network, self.opset = network, opset
        self.graph = network.graph
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {name: np.asarray(w) for name, w in network.weights.items()}
        self.rename = {tensor: output for output, tensor in self.graph.outputs.items()}

    def build(self) -> onnx.ModelProto:
        for node in self.graph.nodes:
            self._add(node)
        inputs = [self._value(name, self.graph.tensors[name]) for name in self.graph.inputs]
        outputs = [self._value(name, self.graph.tensors[tensor]) for name, tensor in self.graph.outputs.items()]
        constants = [numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in self.constants.items()]
        graph = helper.make_graph(self.nodes, self.network.name, inputs, outputs, constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)
        onnx.checker.check_model(model)
        return model

    def _value(self, name: str, info: TensorInfo) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, _TYPES[info.dtype], list(info.shape or ()))

    def _tensor(self, name: str) -> str:
        return self.rename.get(name, name)

    def _node(self, op: str, inputs: list[str], output: str, name: str, attributes: Mapping[str, Any]) -> None:
        node = helper.make_node(op, inputs, [output], name)
        for key, value in attributes.items():
            node.attribute.append(helper.make_attribute(key, list(value) if isinstance(value, tuple) else value))
        self.nodes.append(node)

    def _constant(self, name: str, value: Any, dtype: type[np.generic]) -> str:
        self.constants[name] = np.asarray(value, dtype)
        return name

    def _add(self, node: Node) -> None:
        inputs = [self._tensor(name) if name is not None else "" for name in node.inputs]
        output = self._tensor(node.outputs[0])
        special = getattr(self, f"_add_{node.op.lower()}", None)
        if special is not None:
            special(node, inputs, output)
        else:
            self._node(node.op, inputs, output, node.name, node.attributes)

    def _add_clip(self, node: Node, inputs: list[str], output: str) -> None:
        bounds = [self._constant(f"{node.name}.{end}", node.attributes[end], np.float32) for end in ("min", "max")]
        self._node("Clip", [*inputs, *bounds], output, node.name, {})

    def _add_reshape(self, node: Node, inputs: list[str], output: str) -> None:
        shape = self._constant(f"{node.name}.shape", node.attributes["shape"], np.int64)
        self._node("Reshape", [*inputs, shape], output, node.name, {})

    def _add_convtranspose(self, node: Node, inputs: list[str], output: str) -> None:
        canonical = self.network.weights[inputs[1]]
        group = int(node.attributes["group"])
        shape = (canonical.shape[1] * group, canonical.shape[0] // group, *canonical.shape[2:])
        self.constants[inputs[1]] = to_native(canonical, conv_transpose_layout(shape, group))
        self._node("ConvTranspose", inputs, output, node.name, node.attributes)

    def _add_lstm(self, node: Node, inputs: list[str], output: str) -> None:
        """Constants have an axis for the directions, and the two biases are joined."""
        for name in filter(None, inputs[1:]):
            self.constants[name] = self.network.weights[name][None]
        if len(inputs) > 3:
            joined = f"{node.name}.biases"
            self._node("Concat", [inputs[3], inputs[8]], joined, joined, {"axis": 1})
            inputs = [*inputs[:3], joined]
        attributes = {name: value for name, value in node.attributes.items() if name != "activations"}
        self._node(node.op, inputs, output, node.name, attributes)

    _add_gru = _add_lstm

    def _add_linear(self, node: Node, inputs: list[str], output: str) -> None:
        if self.graph.tensors[node.outputs[0]].rank == 2:
            self._node("Gemm", inputs, output, node.name, {"transB": 1})
            return
        self.constants[inputs[1]] = np.ascontiguousarray(self.network.weights[inputs[1]].T)
        product = f"{node.name}.matmul" if len(inputs) == 3 else output
        self._node("MatMul", inputs[:2], product, product, {})
        if len(inputs) == 3:
            self._node("Add", [product, inputs[2]], output, node.name, {})

    def _add_globalaveragepool(self, node: Node, inputs: list[str], output: str) -> None:
        pooled = f"{node.name}.pool" if not node.attributes["keepdims"] else output
        self._node("GlobalAveragePool", inputs, pooled, pooled, {})
        if pooled != output:
            self._node("Flatten", [pooled], output, node.name, {"axis": 1})

    def _add_matmul(self, node: Node, inputs: list[str], output: str) -> None:
        scale = node.attributes.get("scale")
        product = output if scale is None else f"{node.name}.product"
        self._node("MatMul", inputs, product, product, {})
        if scale is not None:
            factor = self._constant(f"{node.name}.scale", scale, np.float32)
            self._node("Mul", [product, factor], output, node.name, {})

    def _add_swish(self, node: Node, inputs: list[str], output: str) -> None:
        gate = f"{node.name}.sigmoid"
        self._node("Sigmoid", inputs, gate, gate, {})
        self._node("Mul", [inputs[0], gate], output, node.name, {})

    def _add_gelu(self, node: Node, inputs: list[str], output: str) -> None:
        """Written out with Erf, as exporters below opset 20 do."""
        one, half, root = (
            self._constant(f"{node.name}.{label}", value, np.float32)
            for label, value in (("one", 1.0), ("half", 0.5), ("root", np.sqrt(2.0)))
        )
        stem = node.name
        self._node("Div", [inputs[0], root], f"{stem}.div", f"{stem}.div", {})
        self._node("Erf", [f"{stem}.div"], f"{stem}.erf", f"{stem}.erf", {})
        self._node("Add", [f"{stem}.erf", one], f"{stem}.add", f"{stem}.add", {})
        self._node("Mul", [inputs[0], f"{stem}.add"], f"{stem}.mul", f"{stem}.mul", {})
        self._node("Mul", [f"{stem}.mul", half], output, stem, {})
