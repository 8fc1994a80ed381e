"""Carrying out checked edits of an onnx-ir model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from isobit.edits import EditPlan, Inserted, Replaced, Resized
from isobit.errors import EditError
from isobit.graph import Graph, Layout, Node, Shape, Tensor, conv_transpose_layout, to_native
from isobit.graph.free_name import free_name
from isobit.graph.layout import TRANSPOSED, Permute, View, compose, inverse
from isobit.graph.ops import RECURRENT, SETTINGS
from isobit_onnx.read.initializers import add_initializer
from isobit_onnx.read.read_model import infer_shapes
from isobit_onnx.read.unused_nodes import remove_unused
from isobit_onnx.translate.translate import Translation

#: Attributes of the canonical graph that ONNX does not have.
_CORE_ONLY = {"GlobalAveragePool": ("keepdims",), "MatMul": ("scale",)}


def apply_edits(model: ir.Model, translation: Translation, plan: EditPlan) -> ir.Model:
    """A copy of `model` with the plan carried out. `translation` is the model's before the edits."""
    editor = _Editor(model.clone(), translation, plan)
    for step in plan.steps:
        if isinstance(step, Replaced):
            editor.replace(step)
        elif isinstance(step, Resized):
            editor.resize(step)
        else:
            editor.insert(step)
    set_weights(editor.model, plan, translation.graph)
    return editor.model if plan.keeps_shapes(translation.graph) else editor.finish()


def set_weights(model: ir.Model, plan: EditPlan, before: Graph) -> None:
    """Write every new value of a constant that the graph `before` has."""
    for name, value in plan.weights.items():
        info = plan.graph.weights.get(name)
        native = None if info is None else model.graph.initializers.get(info.source or name)
        if info is None or native is None or native.const_value is None or name not in before.weights:
            continue
        array = to_native(value, info.layout, native.const_value.numpy())
        native.const_value, native.shape = ir.Tensor(array, name=native.name), ir.Shape(array.shape)


class _Editor:
    def __init__(self, model: ir.Model, translation: Translation, plan: EditPlan) -> None:
        self.model, self.plan, self.before = model, plan, translation.graph
        self.nodes = {node.name or "": node for node in model.graph}
        self.values = {v.name or "": v for v in ir.convenience.create_value_mapping(model.graph).values()}
        self.tensors = {tensor: self.values[name] for tensor, name in translation.values.items()}
        self.parts_of_new_nodes: dict[str, tuple[str, ...]] = {}

    # --- steps -----------------------------------------------------------------------------------------------------

    def replace(self, step: Replaced) -> None:
        """Build the chain behind the input of the old node, let its readers read the new end, remove the old parts."""
        old = step.old
        # A product with a constant may be removed, and its constant may come first: the chain starts at the tensor.
        first = next((name for name in old.inputs if name in self.tensors), "") if not step.nodes else old.inputs[0]
        source, target = self.tensors[first or ""], self.tensors[old.outputs[0]]
        parts = self._parts(old)
        result = self._chain(source, step.nodes, parts[-1])
        self._take_over(target, result)
        if step.nodes and step.nodes[-1].outputs == old.outputs and not result.is_graph_output():
            self._rename(target, result)
        for part in reversed(parts):
            if not any(output.uses() or output.is_graph_output() for output in part.outputs):
                self.model.graph.remove(part, safe=True)
        self.tensors[old.outputs[0]] = result

    def _parts(self, node: Node) -> list[ir.Node]:
        """The native nodes of a neutral one, also of one that an earlier step made."""
        return [self.nodes[part] for name in node.parts for part in self.parts_of_new_nodes.get(name, (name,))]

    def insert(self, step: Inserted) -> None:
        """Build the chain behind a tensor, or before one input."""
        site = step.site
        name = step.nodes[0].inputs[0] or ""
        source = self.tensors[name]
        if isinstance(site, Tensor):
            producer = source.producer()
            readers = [(use.node, use.idx) for use in source.uses()]
            is_output = source.is_graph_output()
            result = self._chain(source, step.nodes, producer)
            for node, index in readers:
                node.replace_input_with(index, result)
            if is_output:
                self._give_output(source, result)
            return
        parts = self._parts(self.before.node(site.node))
        readers = [(part, i) for part in parts for i, value in enumerate(part.inputs) if value is source]
        result = self._chain(source, step.nodes, source.producer())
        for part, index in readers if len(readers) == 1 else [r for r in readers if r[1] == site.index]:
            part.replace_input_with(index, result)

    def resize(self, step: Resized) -> None:
        """Give the native node its new sizes."""
        new = step.new
        parts = self._parts(step.old)
        if new.op != "Split" or len(parts) != 1 or parts[0].op_type != "Split":
            raise EditError(f"the ONNX backend cannot change the sizes of node {new.name!r} ({new.op})")
        part = parts[0]
        part.attributes.pop("num_outputs", None)
        part.resize_inputs(2)
        part.replace_input_with(1, self._setting(new, "split", new.attributes["split"]))

    def finish(self) -> ir.Model:
        """The edited model, without what nothing reads; shapes are inferred anew, or those of the plan."""
        self._recount()
        remove_unused(self.model)
        passes.TopologicalSortPass()(self.model)
        for node in self.model.graph:
            for output in node.outputs:
                output.shape = output.shape if output.is_graph_output() else None
        for value in self.model.graph.outputs:
            if value.shape is not None:
                value.shape = ir.Shape([None] * len(value.shape))
        infer_shapes(self.model)
        for name, info in self.plan.graph.tensors.items():
            if info.shape is not None and name in self.tensors:  # with names of sizes that a Reshape hides from ONNX
                self._describe(self.tensors[name], info.shape)
        return self.model

    def _recount(self) -> None:
        """Give a Reshape that ends another operation, a pooling for one, the sizes that are left."""
        for node in self.plan.graph.nodes:
            name = node.outputs[0]
            old, new = (
                graph.tensors[name].shape if name in graph.tensors else None for graph in (self.before, self.plan.graph)
            )
            part = self.tensors[name].producer() if name in self.tensors else None
            if old is None or new is None or old == new or part is None or part.op_type != "Reshape":
                continue
            if node.op == "Reshape":  # a node of its own has been replaced where its sizes are others
                continue
            shape = tuple(n if isinstance(n, int) else -1 for n in new)
            if shape.count(-1) > 1:  # a 0 copies the size of the input, which is that of the batch at axis 0 alone
                shape = (0 if shape[0] == -1 else shape[0], *shape[1:])
            if shape.count(-1) > 1:
                raise EditError(f"the ONNX backend cannot change the sizes of node {node.name!r} ({node.op})")
            part.attributes.pop("allowzero", None)
            part.replace_input_with(1, self._setting(node, "shape", shape))

    @staticmethod
    def _describe(value: ir.Value, shape: Shape) -> None:
        inferred = value.shape if value.shape is not None and len(value.shape) == len(shape) else [None] * len(shape)
        value.shape = ir.Shape([old if new is None else new for new, old in zip(shape, inferred, strict=True)])

    # --- building --------------------------------------------------------------------------------------------------

    def _chain(self, source: ir.Value, nodes: tuple[Node, ...], place: ir.Node | None) -> ir.Value:
        parts: list[ir.Node] = []
        for node in nodes:
            first = len(parts)
            source = self._build(node, source, parts)
            self.parts_of_new_nodes[node.name] = tuple(part.name or "" for part in parts[first:])
            self.tensors[node.outputs[0]] = source
        if place is not None:
            self.model.graph.insert_after(place, parts)
        elif parts:
            self.model.graph.insert_before(self.model.graph[0], parts)
        self.nodes.update({part.name or "": part for part in parts})
        return source

    def _build(self, node: Node, source: ir.Value, parts: list[ir.Node]) -> ir.Value:
        if node.op == "Linear":
            return self._build_linear(node, source, parts)
        if node.op in RECURRENT:
            raise EditError(f"the ONNX backend cannot make a {node.op} node ({node.name!r})")
        operands = [source, *(self._operand(node, index, parts) for index in range(1, len(node.inputs)))]
        attributes = {k: v for k, v in node.attributes.items() if k not in _CORE_ONLY.get(node.op, ())}
        settings = SETTINGS.get(node.op, {})
        for index, name in sorted(settings.items()):
            if name in attributes:
                operands += [None] * (index - len(operands))
                operands.append(self._setting(node, name, attributes.pop(name)))
        return self._add(node.op, operands, node.name, attributes, parts)

    def _build_linear(self, node: Node, source: ir.Value, parts: list[ir.Node]) -> ir.Value:
        """Gemm for matrices; MatMul and Add for anything with more axes."""
        weight = node.inputs[1] or ""
        result = self.plan.graph.tensors.get(node.outputs[0]) or self.before.tensors.get(node.outputs[0])
        bias = node.input(2)
        if result is not None and result.rank == 2:
            layout: Layout = TRANSPOSED if self._layout(weight) == TRANSPOSED else ()
            operands: list[ir.Value | None] = [source, self._turned(weight, layout, node, parts)]
            if bias:
                operands.append(self._constant(bias, ()))
            return self._add("Gemm", operands, node.name, {"transB": 1 if layout == () else 0}, parts)
        value = self._turned(weight, TRANSPOSED, node, parts)
        product = self._add("MatMul", [source, value], f"{node.name}.matmul" if bias else node.name, {}, parts)
        return self._add("Add", [product, self._constant(bias, ())], node.name, {}, parts) if bias else product

    def _turned(self, name: str, layout: Layout, node: Node, parts: list[ir.Node]) -> ir.Value:
        """A constant in the layout that an operation reads; one that another reader has in its own is turned."""
        value = self._constant(name, layout)
        if name not in self.before.weights:
            return value
        for step in compose(self._layout(name), inverse(layout)):
            if isinstance(step, Permute):
                value = self._add("Transpose", [value], f"{node.name}.weight_t", {"perm": step.axes}, parts)
            elif isinstance(step, View):
                shape = self._setting(node, "weight_shape", step.shape)
                value = self._add("Reshape", [value, shape], f"{node.name}.weight_view", {}, parts)
            else:
                raise EditError(f"the weight {name!r} of {node.name!r} has a layout that no ONNX node reads")
        return value

    def _layout(self, name: str) -> Layout:
        info = self.plan.graph.weights.get(name) or self.before.weights.get(name)
        return info.layout if info is not None else ()

    def _operand(self, node: Node, index: int, parts: list[ir.Node]) -> ir.Value | None:
        name = node.inputs[index]
        if name is None:
            return None
        if name in self.tensors and name not in self.plan.weights:
            return self.tensors[name]
        if index != 1 or node.op not in ("Conv", "ConvTranspose"):
            return self._constant(name, ())
        layout: Layout = ()
        if node.op == "ConvTranspose":
            out, per_group, *kernel = self._shape(name)
            group = int(node.attributes.get("group", 1))
            layout = conv_transpose_layout((per_group * group, out // group, *kernel), group)
        return self._turned(name, layout, node, parts)

    def _shape(self, name: str) -> tuple[int, ...]:
        info = self.plan.graph.weights.get(name)
        return info.shape if info is not None else self.plan.weights[name].shape

    def _constant(self, name: str, layout: Layout) -> ir.Value:
        """The initializer of a constant; a new one is written in `layout`, the layout its reader needs."""
        info = self.plan.graph.weights.get(name) or self.before.weights[name]
        source = name if name not in self.before.weights else info.source or name
        if source in self.values:
            return self.values[source]
        array = np.asarray(self.plan.weights[name])
        native = to_native(array, layout)
        return self._register(ir.Tensor(native, name=name))

    def _register(self, tensor: ir.Tensor[Any]) -> ir.Value:
        value = add_initializer(self.model.graph, tensor)
        self.values[tensor.name or ""] = value
        return value

    def _setting(self, node: Node, name: str, value: Any) -> ir.Value:
        kind = np.float32 if node.op in ("Clip", "Pad") and name in ("min", "max", "value") else np.int64
        tensor = ir.Tensor(np.asarray(value, kind), name=self._free(f"{node.name}.{name}"))
        return self._register(tensor)

    def _add(
        self, op: str, inputs: list[ir.Value | None], name: str, attributes: Mapping[str, Any], parts: list[ir.Node]
    ) -> ir.Value:
        domain, _, kind = op.rpartition("::")
        node = ir.Node(domain, kind, inputs, ir.convenience.convert_attributes(dict(attributes)), name=name)
        output = node.outputs[0]
        output.name, output.type = self._free(f"{name}_out"), ir.TensorType(ir.DataType.FLOAT)
        self.values[output.name] = output
        parts.append(node)
        return output

    def _free(self, name: str) -> str:
        return free_name(name, self.values, separator="")

    # --- wiring ----------------------------------------------------------------------------------------------------

    def _take_over(self, old: ir.Value, new: ir.Value) -> None:
        """All readers of `old` read `new`; an output of the model keeps its name."""
        if old.is_graph_output():
            self._give_output(old, new)
        ir.convenience.replace_all_uses_with(old, new)

    def _rename(self, old: ir.Value, new: ir.Value) -> None:
        """Let the value that stands for the same tensor of the graph have its name, by which files speak of it."""
        name = old.name or ""
        old.name = self._free(f"{name}_replaced")
        self.values.pop(new.name or "", None)
        new.name = name
        self.values[name] = new

    def _give_output(self, old: ir.Value, new: ir.Value) -> None:
        name, shape, kind = old.name or "", old.shape, old.type
        if new.is_graph_input() or new.is_graph_output() or new.is_initializer():
            identity = ir.Node("", "Identity", [new], name=f"{name}_identity")
            producer = new.producer()
            if producer is not None:
                self.model.graph.insert_after(producer, [identity])
            else:
                self.model.graph.insert_before(self.model.graph[0], [identity])
            new = identity.outputs[0]
        old.name = self._free(f"{name}_replaced")
        new.name, new.shape, new.type = name, shape, kind
        for position, output in enumerate(self.model.graph.outputs):
            if output is old:
                self.model.graph.outputs[position] = new
