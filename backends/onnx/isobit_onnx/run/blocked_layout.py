"""Quantizers and reductions in onnxruntime's blocked layout: an optimised model without the reorders around them.

onnxruntime's CPU kernels of Conv and its kin keep channels in blocks (NCHWc). What it does not know in that layout,
such as QuantizeLinear, it puts between two copies of the tensor, ReorderOutput and ReorderInput. An elementwise
operation does not care about the order of its elements: here it moves into the layout, and the copies go. Every value
keeps its bits.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from isobit.files import temporary_folder
from isobit.graph.free_name import take_name
from isobit_onnx.read.open_session import open_session

_LOG = logging.getLogger(__name__)

DOMAIN = "com.microsoft.nchwc"

# Elementwise, and finite for finite values: the channels that fill up the last block do not matter to what reads them.
_UNARY = {"Relu", "LeakyRelu", "Sigmoid", "HardSigmoid", "Tanh"}
_WITH_SCALARS = {"QuantizeLinear", "DequantizeLinear", "Clip", "Max", "Min", "Add", "Mul"}
_BINARY = {"Add", "Mul"}
_REDUCING = {"ReduceMin", "ReduceMax", "Reshape", "Slice"}


class _Blocked(NamedTuple):
    """The value in blocked layout that holds a plain value's elements; dimensions after the batch, 0 if unknown."""

    name: str
    channels: int
    dims: tuple[int, ...]


def optimise(source: str | bytes, options: Any, folder: Path) -> Path:
    """Write a model as onnxruntime runs it, blocked layout and all, into `folder`; the weights are a file beside it.

    `options` must be fresh. Raises onnxruntime's errors.
    """
    path = folder / "optimised.onnx"
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimised.bin")
    options.add_session_config_entry("session.disable_prepacking", "1")  # this session never runs
    options.intra_op_num_threads = 1
    open_session(source, options)
    return path


@cache
def block_size() -> int:
    """Channels in a block on this machine, read off a small optimised model; 0 where there is no blocked layout."""
    try:
        return _block_size()
    except Exception as error:  # a runtime that does not write its optimised models, or calls things otherwise
        _LOG.info("no blocked layout: %s", error)
        return 0


def _block_size() -> int:
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 33, 4, 4])
    weight = numpy_helper.from_array(np.ones((33, 3, 1, 1), np.float32), "w")
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "probe", [image], [result], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    with temporary_folder() as folder:
        path = optimise(model.SerializeToString(), options, folder)
        optimised = onnx.load(path, load_external_data=False).graph
    conv = next((node for node in optimised.node if node.domain == DOMAIN and node.op_type == "Conv"), None)
    if conv is None:
        return 0
    padded = next(tensor.dims[0] for tensor in optimised.initializer if tensor.name == conv.input[1])
    return int(padded) - 32


def keep_blocked(model: ModelProto, any_order: Collection[str] = ()) -> bool:
    """Move what lies between reorders of an optimised model into the blocked layout, in place; says if anything moved.

    `any_order` are outputs whose elements may come out in another order within each sample: strided samples as
    `isobit_onnx.run.observe` makes them.
    """
    mover = _Mover(model, frozenset(any_order))
    for node in list(model.graph.node):
        mover.take(node)
    if mover.moved:
        del model.graph.node[:]
        alive = _alive(mover.nodes, [output.name for output in model.graph.output])
        model.graph.node.extend(_reductions_first(alive))
        model.graph.initializer.extend(mover.constants)
        del model.graph.value_info[:]  # of the old layout
    return mover.moved


class _Mover:
    """Walks the nodes in order and knows which plain values exist in blocked layout too."""

    def __init__(self, model: ModelProto, any_order: frozenset[str]) -> None:
        graph = model.graph
        self.any_order = any_order
        self.constants_by_name = {tensor.name: tensor for tensor in graph.initializer}
        kinds = {value.name: value.type.tensor_type for value in graph.input}
        # an input of unknown rank has no dimensions either
        self.scalars = {name for name, kind in kinds.items() if kind.HasField("shape") and not kind.shape.dim}
        self.scalars |= _single_parts(graph)
        self.dims = {
            value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim[1:])
            for value in (*graph.value_info, *graph.output)
        }
        self.producers = {name: node for node in graph.node for name in node.output}
        self.blocked: dict[str, _Blocked] = {}
        self.renamed: dict[str, str] = {}
        self.taken = set(_names(graph))
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self.moved = False

    def take(self, node: NodeProto) -> None:
        """Put a node, or what it becomes, behind those taken before."""
        for index, name in enumerate(node.input):
            node.input[index] = self.renamed.get(name, name)
        if node.domain == DOMAIN and node.op_type == "ReorderOutput" and not _attribute(node, "channels_last"):
            dims = self.dims.get(node.output[0], ())
            self.blocked[node.output[0]] = _Blocked(node.input[0], _attribute(node, "channels"), dims)
            self.nodes.append(node)
        elif node.domain == DOMAIN and node.op_type == "ReorderInput" and node.input[0] in self.blocked:
            self.renamed[node.output[0]] = self.blocked[node.input[0]].name
            self.moved |= self.producers[node.input[0]].domain != DOMAIN
        elif node.domain in ("", "ai.onnx") and (inputs := self._elementwise(node)) is not None:
            self._move(node, inputs)
        elif node.domain in ("", "ai.onnx") and self._reads_in_any_order(node):
            self.moved = True
        else:
            self.nodes.append(node)

    def _elementwise(self, node: NodeProto) -> list[_Blocked | None] | None:
        """The blocked inputs of an elementwise node, None for its scalars; None when it cannot move."""
        inputs = [self.blocked.get(name) for name in node.input]
        blocked = [value for value in inputs if value is not None]
        if not blocked or node.op_type not in _UNARY | _WITH_SCALARS or len(node.output) != 1:
            return None
        same_shape = len(blocked) == 1 or (
            node.op_type in _BINARY and blocked[0].dims == blocked[1].dims and all(blocked[0].dims)
        )
        rest_is_scalar = all(
            value is not None or not name or self._is_scalar(name, most=0 if "Linear" in node.op_type else 4)
            for name, value in zip(node.input, inputs, strict=True)
        )
        return (
            inputs
            if same_shape and rest_is_scalar and (len(blocked) == len(node.input) or node.op_type in _WITH_SCALARS)
            else None
        )

    def _is_scalar(self, name: str, most: int) -> bool:
        """Whether a constant, an input or a part of one holds one number, a constant in at most `most` dimensions.

        A scale of one dimension is per channel.
        """
        if name in self.scalars:
            return True
        constant = self.constants_by_name.get(name)
        return constant is not None and prod(constant.dims) == 1 and len(constant.dims) <= most

    def _move(self, node: NodeProto, inputs: list[_Blocked | None]) -> None:
        """Compute in blocked layout; whoever reads the plain value gets it by a reorder."""
        source = next(value for value in inputs if value is not None)
        moved_node = NodeProto()
        moved_node.CopyFrom(node)
        moved_node.name = self._free(f"{node.name or node.output[0]}__blocked")
        for index, value in enumerate(inputs):
            if value is not None:
                moved_node.input[index] = value.name
        plain = node.output[0]
        moved_node.output[0] = self._free(f"{plain}__blocked")
        self.blocked[plain] = _Blocked(moved_node.output[0], source.channels, source.dims)
        self.nodes.append(moved_node)
        if node.op_type == "QuantizeLinear":  # there is no reorder of integers
            self.nodes.append(node)
        else:
            name = self._free(f"{plain}__reorder")
            self.nodes.append(_reorder_output(moved_node.output[0], plain, source.channels, name))

    def _reads_in_any_order(self, node: NodeProto) -> bool:
        """Let a reduction to one number, or a strided sample, read the blocked value; False when it cannot."""
        if not node.input:
            return False
        if node.op_type in ("ReduceMin", "ReduceMax"):
            source = self._full(node.input[0])
            if source is None or len(node.input) > 1 or _attribute(node, "keepdims", 1):
                return False
            node.input[0] = source.name
            self.nodes.append(node)
            return True
        if node.op_type == "Slice" and node.output[0] in self.any_order:
            flat = self.producers.get(node.input[0])
            source = self._full(flat.input[0]) if flat is not None and flat.op_type == "Reshape" else None
            if source is None:
                return False
            self._sample(node, source)
            return True
        return False

    def _full(self, name: str) -> _Blocked | None:
        """The blocked value of a plain one, if no channels fill up its last block."""
        source = self.blocked.get(name)
        return source if source is not None and block_size() and source.channels % block_size() == 0 else None

    def _sample(self, node: NodeProto, source: _Blocked) -> None:
        """Every k-th position of the image with all its channels: (batch, blocks, positions, channels of a block)."""
        shape = self._free(f"{node.output[0]}__blocks")
        numbers = np.array([0, source.channels // block_size(), -1, block_size()], np.int64)
        self.constants.append(numpy_helper.from_array(numbers, shape))
        flat = self._free(f"{node.output[0]}__positions")
        self.nodes.append(helper.make_node("Reshape", [source.name, shape], [flat], self._free(f"{flat}_node")))
        node.input[0] = flat
        self.nodes.append(node)

    def _free(self, name: str) -> str:
        """A name that no node and no value has yet."""
        return take_name(name, self.taken)


def _names(graph: GraphProto) -> Iterable[str]:
    """The names of all nodes and values, also of those inside nodes."""
    for value in (*graph.input, *graph.initializer):
        yield value.name
    for node in graph.node:
        yield node.name
        yield from node.output
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _names(body)


def _single_parts(graph: GraphProto) -> set[str]:
    """The parts of one element that a Split makes, as far as their sizes are known."""
    single = {
        value.name for value in graph.value_info if [d.dim_value for d in value.type.tensor_type.shape.dim] == [1]
    }
    return {name for node in graph.node if node.op_type == "Split" for name in node.output if name in single}


def _reorder_output(blocked: str, plain: str, channels: int, name: str) -> NodeProto:
    return helper.make_node(
        "ReorderOutput", [blocked], [plain], name, domain=DOMAIN, channels=channels, channels_last=0
    )


def _attribute(node: NodeProto, name: str, default: int = 0) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)


def _alive(nodes: list[NodeProto], outputs: Iterable[str]) -> list[NodeProto]:
    """The nodes that an output depends on, in order."""
    needed, alive = set(outputs), []
    for node in reversed(nodes):
        if any(name in needed for name in node.output):
            alive.append(node)
            needed.update(_read(node))
    return alive[::-1]


def _reductions_first(nodes: list[NodeProto]) -> list[NodeProto]:
    """The nodes in order, but each reduction or sample right behind what it reads."""
    made_here = {name for node in nodes for name in node.output}
    readers: dict[str, list[NodeProto]] = {}
    others: list[NodeProto] = []
    for node in nodes:
        inner = [name for name in node.input if name in made_here]
        if node.op_type in _REDUCING and len(inner) == 1:
            readers.setdefault(inner[0], []).append(node)
        else:
            others.append(node)
    ordered: list[NodeProto] = []
    waiting = others[::-1]
    while waiting:
        node = waiting.pop()
        ordered.append(node)
        for name in node.output:
            waiting += reversed(readers.get(name, []))
    return ordered


def _read(node: NodeProto) -> Iterable[str]:
    """All names that a node and the graphs inside it read."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _read(inner)
            yield from (output.name for output in graph.output)
