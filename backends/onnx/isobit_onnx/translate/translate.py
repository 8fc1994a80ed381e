"""From an onnx-ir model to the neutral graph, and the way back from its names to the native nodes and values."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx
import onnx_ir as ir

from isobit.canonical import canonicalize
from isobit.errors import ModelError
from isobit.graph import Graph, Node, Shape, TensorInfo, Use, WeightInfo
from isobit.graph.ops import BODIES, BODY_WEIGHTS
from isobit_onnx.read import wide_floats
from isobit_onnx.read.bodies.branches import METADATA, depends_on_signal
from isobit_onnx.read.fused import stored_weights
from isobit_onnx.translate.body_weights import body_weights


@dataclass(frozen=True)
class Translation:
    """The canonical graph of a model and the native names behind its tensors; nodes keep their native names."""

    graph: Graph
    values: dict[str, str]  # tensor of the graph -> value of the model


def translate(model: ir.Model) -> Translation:
    """Read a prepared model (`isobit_onnx.read.read_model`)."""
    return _Translator(model).read()


class _Translator:
    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.opset = model.opset_imports.get("", 1)
        self.names: dict[str, str] = {}  # native value -> tensor or weight
        self.tensors: dict[str, TensorInfo] = {}
        self.weights: dict[str, WeightInfo] = {}
        self.notes: list[str] = []

    def read(self) -> Translation:
        graph = self.model.graph
        if METADATA in self.model.metadata_props:
            self.notes.append(self.model.metadata_props[METADATA])
        if wide_floats.METADATA in self.model.metadata_props:
            types = self.model.metadata_props[wide_floats.METADATA]
            self.notes.append(f"the layers are {types} in the model as given: they are computed in float32")
        if stored_weights.METADATA in self.model.metadata_props:
            types = self.model.metadata_props[stored_weights.METADATA]
            self.notes.append(
                f"weights are integers ({types}) in the model as given: they are opened as the floats that these stand "
                "for and quantized anew; sim.load_encodings(the file, strict=False, freeze=True) keeps the integers"
            )
        for value in graph.inputs:
            self._tensor(_name(value), value)
        for value in graph.initializers.values():
            self._weight(value)
        nodes = [self._node(node) for node in graph]
        outputs = {}
        for value in graph.outputs:
            name = self.names[_name(value)]
            if name in self.weights:
                raise ModelError(f"output {_name(value)!r} is a constant: remove it from the model's outputs")
            outputs[_name(value)] = name
        inputs = tuple(self.names[_name(value)] for value in graph.inputs)
        raw = Graph(tuple(nodes), inputs, outputs, self.tensors, self.weights, tuple(self.notes))
        values = {tensor: native for native, tensor in self.names.items() if tensor in self.tensors}
        canonical = canonicalize(raw)
        return Translation(canonical, {name: values[name] for name in canonical.tensors})

    def _tensor(self, name: str, value: ir.Value) -> None:
        self.names[_name(value)] = name
        self.tensors[name] = TensorInfo(_shape(value), _dtype(value))

    def _weight(self, value: ir.Value) -> None:
        name, tensor = _name(value), value.const_value
        if tensor is None:
            raise ModelError(f"weight {name!r} has no value")
        self.names[name] = name
        if tensor.dtype == ir.DataType.STRING:
            self.weights[name] = WeightInfo(tuple(int(n) for n in value.shape or () if isinstance(n, int)), "string")
        else:
            self.weights[name] = WeightInfo.of(tensor.numpy(), name, _dtype(value))

    def _node(self, node: ir.Node) -> Node:
        name = node.name or ""
        inputs = [self.names[_name(value)] if value is not None else None for value in node.inputs]
        op = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
        known = _known_attributes(op, self.opset)
        attributes = {
            key: _attribute(a) for key, a in node.attributes.items() if _is_plain(a) and (known is None or key in known)
        }
        if op in BODIES:
            # What a body reads from outside is an input too: fusions and quantizers must see that reader.
            native = [None if value is None else _name(value) for value in node.inputs] + list(self._captured(node))
            inputs = [None if value is None else self.names[value] for value in native]
            weights = body_weights((body for a in node.attributes.values() for body in _graphs(a)), native)
            if weights:
                attributes[BODY_WEIGHTS] = weights
            self.notes.append(f"{op} {name!r}: {_why_in_float(node)}")
        if node.domain.startswith("com.microsoft"):
            self.notes.append(f"{op} {name!r} {_why_foreign(node)}")
        outputs = []
        for index, value in enumerate(node.outputs):
            if value.name and (value.uses() or value.is_graph_output() or index == 0):
                tensor = name if index == 0 else f"{name}:{index}"
                self._tensor(tensor, value)
                outputs.append(tensor)
        return Node(name, op, tuple(inputs), tuple(outputs), attributes, (name,))

    def _captured(self, node: ir.Node) -> Iterator[str]:
        """Outer values read anywhere inside the bodies of a node."""
        captured: set[str] = set()
        for attribute in node.attributes.values():
            for body in _graphs(attribute):
                for inner in ir.traversal.RecursiveGraphIterator(body):
                    for value in inner.inputs:
                        if value is not None and value.name in self.names and _is_outer(value, self.model.graph):
                            captured.add(_name(value))
                for value in body.outputs:
                    if value.name in self.names and _is_outer(value, self.model.graph):
                        captured.add(_name(value))
        yield from sorted(captured - {_name(value) for value in node.inputs if value is not None})


def _why_in_float(node: ir.Node) -> str:
    text = "the operations inside its bodies stay in float"
    condition = node.inputs[0] if node.op_type == "If" else None
    if condition is None:
        return f"{text}: only a small number of passes that constants decide is taken apart"
    if depends_on_signal(condition):
        return f"{text}, because the values of the data choose between them"
    return f"{text}, because no example decides between them: pass example_inputs, one batch of the model's inputs"


def _why_foreign(node: ir.Node) -> str:
    constants = [value for value in node.inputs if value is not None and value.const_value is not None]
    if any(value.dtype in _STORED and value.shape is not None and len(value.shape) > 1 for value in constants):
        return "stays as it is: its weight is integers already"
    return (
        "stays in float: an optimiser has fused it, and isobit does not take it apart; save the model without graph "
        "optimisation, or with a lower level"
    )


def _graphs(attribute: Any) -> list[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    if attribute.type == ir.AttributeType.GRAPHS:
        return list(attribute.as_graphs())
    return []


def _is_outer(value: ir.Value, graph: ir.Graph) -> bool:
    producer = value.producer()
    if producer is not None:
        return producer.graph is graph
    return (value.is_initializer() and value.graph is graph) or any(value is i for i in graph.inputs)


def _name(value: ir.Value) -> str:
    return value.name or ""


def _dtype(value: ir.Value) -> str:
    if isinstance(value.type, ir.SequenceType | ir.OptionalType):
        return "sequence"
    dtype = value.dtype
    if dtype is None:
        return "unknown"
    if dtype == ir.DataType.STRING:
        return "string"
    float_names = {ir.DataType.FLOAT: "float32", ir.DataType.DOUBLE: "float64"}
    return float_names.get(dtype, dtype.name.lower())


def _shape(value: ir.Value) -> Shape | None:
    if value.shape is None:
        return None
    return tuple(n if isinstance(n, int) else n.value for n in value.shape)


@cache
def _known_attributes(op: str, opset: int) -> frozenset[str] | None:
    """The attributes of an op of ONNX, None for one that it does not have.

    A file can have others, which onnxruntime ignores; here they could be taken for what the neutral graph means.
    """
    if not onnx.defs.has(op):
        return None
    try:
        return frozenset(onnx.defs.get_schema(op, opset).attributes)
    except onnx.defs.SchemaError:
        return None


def _is_plain(attribute: Any) -> bool:
    return attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def _attribute(attribute: Any) -> Any:
    value = attribute.value
    if attribute.type == ir.AttributeType.TENSOR:
        return value.numpy()
    return tuple(value) if isinstance(value, list) else value


#: Types that weights of quantized layers are stored in.
_STORED = frozenset({ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4})

#: Ops that pass the numbers of input 0 on.
_VIEWS = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Dropout", "Cast"})


class NativeNodes:
    """The nodes of a model by name, in their order; made once for many sites."""

    def __init__(self, model: ir.Model) -> None:
        self._nodes = {node.name or "": (position, node) for position, node in enumerate(model.graph)}

    def __getitem__(self, name: str) -> ir.Node:
        return self._nodes[name][1]

    def among(self, names: Collection[str]) -> list[ir.Node]:
        """The nodes of these names that are there, in the order of the model."""
        found = sorted((self._nodes[name] for name in names if name in self._nodes), key=lambda item: item[0])
        return [node for _, node in found]


def native_readers(
    nodes: NativeNodes, use: Use, source: str, tensors: Collection[str] = ()
) -> tuple[tuple[str, int], ...]:
    """The (node, input) pairs through which a reader in the graph reads the value `source`, directly or by a view.

    A view that is one of `tensors`, what the same node reads too, is another value.
    """
    others = set(tensors) - {source}
    return tuple(
        (node.name or "", index)
        for node in nodes.among(set(use.node.parts))
        for index, value in enumerate(node.inputs)
        if value is not None and _sees(value, source, others)
    )


def _sees(value: ir.Value, source: str, others: set[str]) -> bool:
    names = [_name(link) for link in view_chain(value)]
    return source in names and others.isdisjoint(names[: names.index(source)])


def view_chain(value: ir.Value) -> list[ir.Value]:
    """The value and, up through views, the values it was made from."""
    chain = [value]
    producer = value.producer()
    while producer is not None and producer.op_type in _VIEWS and producer.inputs[0] is not None:
        chain.append(producer.inputs[0])
        producer = producer.inputs[0].producer()
    return chain


def readers_through_views(value: ir.Value) -> list[tuple[ir.Node, int]]:
    """Who reads a value, directly or by views."""
    readers: list[tuple[ir.Node, int]] = []
    for use in value.uses():
        views = use.node.outputs[:1] if use.node.op_type in _VIEWS and use.idx == 0 else ()
        behind = [readers_through_views(view) for view in views if not view.is_graph_output()]
        readers += behind[0] if behind else [(use.node, use.idx)]
    return readers
