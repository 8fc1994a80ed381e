"""From a jaxpr to the neutral graph: patterns first, then one rule for each primitive. Backward, so that nothing that
the outputs do not need is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.export import symbolic_shape
from numpy.typing import NDArray

from isobit.canonical import canonicalize
from isobit.errors import ModelError
from isobit.graph import Graph, Node, Shape, TensorInfo, WeightInfo
from isobit.layout import to_canonical
from isobit_jax.flattening import Flat, Step, Value, trace
from isobit_jax.native import JaxModel, outputs_by_name
from isobit_jax.patterns import Match, find
from isobit_jax.rules import RULES

#: The size of axis 0. All traces share one symbol, or their shapes could not be compared.
(BATCH,) = symbolic_shape("batch")

_TYPES = ("float32", "int32", "uint8", "int8", "bool")


def read(model: JaxModel, example: Mapping[str, Any]) -> tuple[Graph, dict[str, NDArray[Any]]]:
    """The canonical graph of a model and its constants, both in canonical layout. Raises ModelError."""
    inputs = {name: _abstract(name, np.asarray(array)) for name, array in example.items()}
    leaves, treedef = jax.tree_util.tree_flatten_with_path(model.params)
    names = [".".join(_key(part) for part in path) or "params" for path, _ in leaves]
    params = [np.array(leaf) for _, leaf in leaves]

    outputs: list[str] = []  # in the user's order, which JAX does not keep

    def flat_function(arrays: list[Any], given: dict[str, Any]) -> dict[str, Any]:
        params = jax.tree_util.tree_unflatten(treedef, arrays)
        found = outputs_by_name(model.function(params, **given))
        outputs[:] = map(str, found)
        return dict(found)

    try:
        flat = trace(flat_function, params, inputs)
    except Exception as error:  # JAX raises its own kinds, the user's function anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise ModelError(
            f"the function cannot be traced for any batch size: {type(error).__name__}: {reason}"
        ) from error
    keys = sorted(inputs)  # the order in which JAX flattens a dict
    reader = Reader(
        dict(zip(map(id, flat.inputs), [*names, *keys], strict=False)), dict(zip(names, params, strict=True))
    )
    graph = reader.graph(flat, [name for name in example], sorted(outputs))
    graph = replace(graph, outputs={name: graph.outputs[name] for name in outputs})
    graph = canonicalize(graph)
    arrays = {n: to_canonical(reader.constants[i.source or n], i.layout) for n, i in graph.weights.items()}
    return graph, {name: np.array(array, order="C") for name, array in arrays.items()}


def _abstract(name: str, array: NDArray[Any]) -> jax.ShapeDtypeStruct:
    kind = {"float64": "float32", "int64": "int32"}.get(str(array.dtype), str(array.dtype))
    if kind not in _TYPES or array.ndim == 0:
        raise ModelError(
            f"input {name!r} is {array.dtype} of shape {array.shape}: inputs are {', '.join(_TYPES)} batches"
        )
    return jax.ShapeDtypeStruct((BATCH, *array.shape[1:]), np.dtype(kind))


def _key(part: Any) -> str:
    return str(next((getattr(part, name) for name in ("key", "name", "idx") if hasattr(part, name)), part))


class Reader:
    """Collects the nodes of one graph. Rules call `add`, `constant` and `moved`."""

    def __init__(self, names: dict[int, str], constants: dict[str, NDArray[Any]]) -> None:
        self._names, self.constants = names, constants
        self._tensors: dict[str, TensorInfo] = {}
        self._nodes: list[Node] = []
        self._taken = Counter([*names.values()])
        self._scope, self._readers = "", Counter[int]()

    def graph(self, flat: Flat, inputs: list[str], outputs: list[str]) -> Graph:
        """The raw graph, every parameter under its path, every node under its `jax.named_scope`."""
        for position, array in flat.constants.items():
            self._names[id(flat.inputs[position])] = self._free("constant")
            self.constants[self._names[id(flat.inputs[position])]] = np.asarray(array)
        for value in flat.inputs:
            if self._names[id(value)] not in self.constants:
                self._tensors[self._names[id(value)]] = TensorInfo(shape_of(value), value.dtype)
        needed = _needed(flat)
        self._readers = Counter(id(v) for step, match in needed for v in (match.inputs if match else step.inputs))
        self._readers.update(map(id, flat.outputs))
        for step, match in needed:
            self._scope = step.scope
            if match is not None and match.op in ("LSTM", "GRU"):
                self._recurrent(match, step.outputs[-1])
            elif match is not None:
                self.add(match.op, [self.name(v) for v in match.inputs], step.outputs[-1], **match.attributes)
            elif step.primitive in RULES:
                RULES[step.primitive](self, step)
            else:
                place = f" (in {step.scope})" if step.scope else ""
                raise ModelError(
                    f"the JAX backend does not read {step.primitive!r}{place}; it reads {', '.join(RULES)}"
                )
        infos = {name: WeightInfo.of(array, name) for name, array in self.constants.items()}
        found = {name: self.name(value) for name, value in zip(outputs, flat.outputs, strict=True)}
        graph = Graph(tuple(self._nodes), tuple(inputs), found, self._tensors, infos)
        graph = graph.with_nodes(graph.nodes)
        bad = next((n for n, i in graph.weights.items() if i.is_float and i.dtype != "float32"), None)
        if bad is not None:
            raise ModelError(f"parameter {bad!r} is {graph.weights[bad].dtype}: parameters are float32 here")
        return graph

    def _recurrent(self, match: Match, output: Value) -> None:
        """ONNX has an axis for the direction behind the sequence's; the graph's second bias is input 8."""
        length, batch, hidden = shape_of(output)
        names: list[str | None] = [self.name(v) for v in match.inputs]
        names[4:4] = [None] * 4 if len(names) == 5 else []
        y = self.between(match.op, names, (length, 1, batch, hidden), **match.attributes)
        y = self.between("Transpose", [y], (length, batch, 1, hidden), perm=(0, 2, 1, 3))
        self.add("Reshape", [y], output, shape=(length, -1, hidden))

    def name(self, value: Value) -> str:
        """The graph's name of a value; a number in the code becomes a constant."""
        if value.literal is not None:
            return self.constant(np.asarray(value.literal, value.dtype))
        if id(value) not in self._names:
            raise ModelError("a reversed array is read as the kernel of a transposed convolution alone")
        return self._names[id(value)]

    def alias(self, value: Value, source: Value) -> None:
        """`value` is `source`, as numbers and by name."""
        self._names[id(value)] = self.name(source)

    def constant(self, array: NDArray[Any]) -> str:
        """A new constant."""
        name = self._free("constant")
        self.constants[name] = array
        return name

    def add(self, op: str, inputs: Sequence[str | None], output: Value, **attributes: Any) -> None:
        """A node whose result is `output`."""
        self._names[id(output)] = self._node(op, inputs, shape_of(output), output.dtype, attributes)

    def between(self, op: str, inputs: Sequence[str | None], shape: Shape, /, **attributes: Any) -> str:
        """A node whose result only the next one reads; returns its name."""
        return self._node(op, inputs, shape, "float32", attributes)

    def moved(self, name: str, axes: tuple[int, ...]) -> str:
        """The transpose of a tensor or constant; itself where the axes stay."""
        if axes == tuple(range(len(axes))):
            return name
        shape = self.shape(name)
        return self.between("Transpose", [name], tuple(shape[axis] for axis in axes), perm=axes)

    def shape(self, name: str) -> Any:
        """The shape of a tensor or constant."""
        return self.constants[name].shape if name in self.constants else self._tensors[name].shape

    def give_bias(self, convolution: Value, bias: Value, total: Value) -> bool:
        """Make `total`, a convolution plus `bias`, one node; False where something else reads the convolution."""
        position = len(self._nodes) - 1
        while position >= 0 and self._nodes[position].outputs[0] != self.name(convolution):
            position -= 1
        node = self._nodes[position]
        if self._readers[id(convolution)] > 1 or node.op not in ("Conv", "ConvTranspose") or len(node.inputs) > 2:
            return False
        self._nodes[position] = replace(node, inputs=(*node.inputs, self.name(bias)))
        self.alias(total, convolution)
        return True

    def _node(
        self, op: str, inputs: Sequence[str | None], shape: Shape, dtype: str, attributes: Mapping[str, Any]
    ) -> str:
        name = self._free(self._scope or op.lower())
        self._nodes.append(Node(name, op, tuple(inputs), (name,), dict(attributes), (name,)))
        self._tensors[name] = TensorInfo(shape, dtype)
        return name

    def _free(self, stem: str) -> str:
        name = stem
        while self._taken[name]:
            name = f"{stem}#{self._taken[stem]}"
            self._taken[stem] += 1
        self._taken[name] += 1
        return name


def shape_of(value: Value) -> Shape:
    """The shape, with None for every dimension that depends on the batch size."""
    return tuple(n if isinstance(n, int) else ("batch" if n is BATCH or n == BATCH else None) for n in value.shape)


def _needed(flat: Flat) -> list[tuple[Step, Match | None]]:
    """The steps that the outputs need, in order, each as the end of a pattern or alone."""
    needed, found = {id(value) for value in flat.outputs}, []
    for step in reversed(flat.steps):
        if needed.isdisjoint(map(id, step.outputs)):
            continue
        match = find(step)
        found.append((step, match))
        needed.update(map(id, match.inputs if match is not None else step.inputs))
    return found[::-1]
