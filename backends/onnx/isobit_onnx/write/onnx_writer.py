"""The nodes, constants and names of one ONNX model that is written from a neutral graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from isobit.backend import OnnxName
from isobit.errors import ModelError
from isobit.graph import (
    Graph,
    Input,
    Layout,
    Node,
    Permute,
    Site,
    Tensor,
    TensorInfo,
    Weight,
    conv_transpose_layout,
    to_native,
)
from isobit.graph.free_name import take_name
from isobit.graph.layout import TRANSPOSED
from isobit_onnx.read.opset import OPSET

#: The ONNX model of a node outside the ONNX vocabulary: an input for each tensor that it reads, and as many outputs,
#: in order. Constants that it reads are in the model.
Foreign = Callable[[Node], onnx.ModelProto]

#: Adds the ONNX nodes of a node of the graph, whose inputs have these names in the ONNX model.
Lowering = Callable[["OnnxWriter", Node, Sequence[str]], None]


class OnnxWriter:
    """Collects the nodes and constants of one model."""

    def __init__(
        self,
        graph: Graph,
        weights: Callable[[str], NDArray[Any]],
        lowerings: Mapping[str, Lowering],
        foreign: Foreign | None = None,
    ) -> None:
        """`lowerings` are those of the ops that ONNX has; `foreign` writes the nodes of all others."""
        self.graph, self._weights, self._lowerings, self._foreign = graph, weights, lowerings, foreign
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self.names: dict[Site, OnnxName] = {}
        self._taken = {*graph.inputs, *graph.outputs}
        self._values: dict[str, str] = {}
        self._node_names: set[str] = set()
        self._views: dict[tuple[str, Layout], str] = {}

    def write(self) -> onnx.ModelProto:
        """The whole model."""
        self._name_values()
        for node in self.graph.nodes:
            self._add(node)
        for name, tensor in self.graph.outputs.items():
            if self._values[tensor] != name:
                self.node("Identity", [self._values[tensor]], name, f"{name}/output", {})
        inputs = [_value(name, self.graph.tensors[name]) for name in self.graph.inputs]
        outputs = [_value(name, self._info(tensor)) for name, tensor in self.graph.outputs.items()]
        constants = [numpy_helper.from_array(np.ascontiguousarray(a) if a.ndim else a, name)
                     for name, a in self.constants.items()]  # fmt: skip
        graph = helper.make_graph(self.nodes, "model", inputs, outputs, constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)

    def _info(self, tensor: str) -> TensorInfo:
        info = self.graph.tensors.get(tensor)
        return info or TensorInfo(self.graph.weights[tensor].shape, self.graph.weights[tensor].dtype)

    def _name_values(self) -> None:
        """Outputs give their tensors their names; a tensor whose name an output has gets another."""
        for name in self.graph.inputs:
            self._values[name] = name
        for name, tensor in self.graph.outputs.items():
            if tensor in self.graph.tensors:
                self._values.setdefault(tensor, name)
        for name in self.graph.tensors:
            if name not in self._values:
                self._values[name] = self.free(name)
            self.names[Tensor(name)] = OnnxName(self._values[name])
        for name in self.graph.weights:
            if not any(use.node.op in self._lowerings for use in self.graph.uses(name)) and self.graph.uses(name):
                continue  # the nodes that read it hold it themselves
            layout = self._stored_layout(name)
            self._values[name] = self.free(name)
            self.constants[self._values[name]] = to_native(np.asarray(self._weights(name)), layout)
            self.names[Weight(name)] = OnnxName(self._values[name], layout)

    def _stored_layout(self, name: str) -> Layout:
        """How the stored constant becomes canonical; it is stored as all its readers need it, or else as it is."""
        layouts = [self._read_layout(use.node) for use in self.graph.uses(name) if use.index == 1]
        agreed = set(layouts)
        read_elsewhere = len(layouts) < len(self.graph.uses(name))
        layout = agreed.pop() if len(agreed) == 1 and not read_elsewhere else None
        return layout or ()

    def _read_layout(self, node: Node) -> Layout | None:
        """How the constant at input 1 of the ONNX node becomes the canonical one; None where there is no constant."""
        name = node.inputs[1] or ""
        if name not in self.graph.weights:
            return None
        shape = self.graph.weights[name].shape
        if node.op == "ConvTranspose":
            group = int(node.attributes.get("group", 1))
            return conv_transpose_layout((shape[1] * group, shape[0] // group, *shape[2:]), group)
        if node.op == "MatMul" and len(shape) > 2:
            last = len(shape) - 1
            return (Permute((*range(last - 1), last, last - 1)),)
        if node.op == "Linear":
            return () if self.graph.tensors[node.outputs[0]].rank == 2 else TRANSPOSED
        return ()

    # --- nodes -----------------------------------------------------------------------------------------------------

    def _add(self, node: Node) -> None:
        first = len(self.nodes)
        lowering = self._lowerings.get(node.op)
        if lowering is not None:
            lowering(self, node, [self._operand(node, index) for index in range(len(node.inputs))])
        elif self._foreign is not None and "::" in node.op:
            self._inline(node, self._foreign(node))
        else:
            raise ModelError(f"node {node.name!r} ({node.op}) has no ONNX form")
        self._name_inputs(node, self.nodes[first:])

    def _name_inputs(self, node: Node, written: Sequence[onnx.NodeProto]) -> None:
        """The one ONNX input that reads what each input of the node reads."""
        for index, name in enumerate(node.inputs):
            if name is None:
                continue
            if name not in self._values:
                continue
            layout = self.names[Weight(name)].layout if name in self.graph.weights else ()
            readers = [
                (onnx_node, position)
                for onnx_node in written
                for position, read in enumerate(onnx_node.input)
                if read == self._values[name]
            ]
            if node.inputs.count(name) > 1:
                readers = [reader for reader in readers if reader[1] == index]
            if len(readers) >= 1:
                target, place = self._through_view(*readers[0])
                self.names[Input(node.name, index)] = OnnxName(target.name, layout, place)

    def _through_view(self, node: onnx.NodeProto, index: int) -> tuple[onnx.NodeProto, int]:
        """The reader of a constant behind the transposition that was written for it."""
        if node.op_type in ("Transpose", "Unsqueeze") and node.input[0] in self.constants:
            for other in self.nodes:
                for place, read in enumerate(other.input):
                    if read == node.output[0]:
                        return other, place
        return node, index

    def _operand(self, node: Node, index: int) -> str:
        name = node.inputs[index]
        if name is None:
            return ""
        if name not in self.graph.weights or index != 1:
            return self._values[name]
        layout, stored = self._read_layout(node), self.names[Weight(name)].layout
        if layout is None or layout == stored or node.op == "Linear":
            return self._values[name]
        if len(layout) != 1 or not isinstance(layout[0], Permute) or stored:
            raise ModelError(f"constant {name!r} is read in two layouts: Unshare it before the export")
        transposed = self._values[name] + "/transposed"
        if transposed not in self._taken:
            self.node(
                "Transpose", [self._values[name]], transposed, transposed, {"perm": np.argsort(layout[0].axes).tolist()}
            )
            self._taken.add(transposed)
        return transposed

    def node(
        self, op: str, inputs: Sequence[str], outputs: str | Sequence[str], name: str, attributes: Mapping[str, Any]
    ) -> None:
        """Add an ONNX node under a free name."""
        free_name, number = name, 0
        while free_name in self._node_names:
            number += 1
            free_name = f"{name}_{number}"
        self._node_names.add(free_name)
        trimmed = list(inputs)
        while trimmed and not trimmed[-1]:
            trimmed.pop()
        onnx_node = helper.make_node(op, trimmed, [outputs] if isinstance(outputs, str) else list(outputs), free_name)
        for key, value in attributes.items():
            onnx_node.attribute.append(helper.make_attribute(key, list(value) if isinstance(value, tuple) else value))
        self.nodes.append(onnx_node)

    def constant(self, name: str, value: Any, dtype: Any) -> str:
        """Add a constant that the graph has as a setting; returns its name."""
        free_name = self.free(name)
        self.constants[free_name] = np.asarray(value, dtype)
        return free_name

    def value(self, tensor: str) -> str:
        """The ONNX name of a tensor of the graph."""
        return self._values[tensor]

    def stored_layout(self, weight: str) -> Layout:
        """How the stored constant becomes the canonical one."""
        return self.names[Weight(weight)].layout

    def free(self, name: str) -> str:
        """A name for a value that nothing has yet."""
        return take_name(name, self._taken)

    def _inline(self, node: Node, model: onnx.ModelProto) -> None:
        """The nodes of another model in place of one node, its names under the node's."""
        inner = model.graph
        data = [name for name in node.inputs if name is not None and name in self.graph.tensors]
        initial = {constant.name for constant in inner.initializer}
        entries = [value.name for value in inner.input if value.name not in initial]
        rename = {entry: self._values[name] for entry, name in zip(entries, data, strict=True)}
        for constant in inner.initializer:
            array = numpy_helper.to_array(constant)
            rename[constant.name] = self.constant(f"{node.name}/{constant.name}", array, array.dtype)
        results = {value.name: self._values[name] for value, name in zip(inner.output, node.outputs, strict=False)}
        for inner_node in inner.node:
            for output in inner_node.output:
                rename[output] = results.get(output) or self.free(f"{node.name}/{output}")
        for inner_node in inner.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(inner_node)
            copy.name = f"{node.name}/{inner_node.name}"
            copy.input[:] = [rename.get(name, name) for name in inner_node.input]
            copy.output[:] = [rename[name] if name else "" for name in inner_node.output]
            for attribute in copy.attribute:
                _rename_outer(attribute.g, rename)
            self.nodes.append(copy)


def _rename_outer(body: onnx.GraphProto, rename: Mapping[str, str]) -> None:
    """New names in the body of a loop or a branch for what it reads from outside; in place."""
    own = {entry.name for entry in (*body.input, *body.initializer)} | {name for n in body.node for name in n.output}
    outer = {name: new for name, new in rename.items() if name not in own}
    for node in body.node:
        node.input[:] = [outer.get(name, name) for name in node.input]
        for attribute in node.attribute:
            _rename_outer(attribute.g, outer)
    for output in body.output:
        output.name = outer.get(output.name, output.name)


def _value(name: str, info: TensorInfo) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(info.dtype))
    return helper.make_tensor_value_info(name, kind, None if info.shape is None else list(info.shape))
