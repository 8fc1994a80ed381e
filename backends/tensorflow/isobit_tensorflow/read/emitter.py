"""Building the raw neutral graph of a Keras model: nodes in ONNX vocabulary, channels first.

A Keras tensor with the channels last is kept in the graph as its channels-first form, and a Transpose is written only
where a reader needs the axes as Keras has them (Reshape, Dense over space), or where the model takes or returns them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from isobit.canonical.cleaning import drop_unread
from isobit.errors import ModelError
from isobit.graph import Graph, Layout, Node, Shape, TensorInfo, WeightInfo, to_canonical
from isobit.graph.free_name import take_name
from isobit.graph.layout import compose
from isobit_tensorflow.axes import first_axes, last_axes
from isobit_tensorflow.read.names import StableNames
from isobit_tensorflow.read.parameters import Computed, VariableView
from isobit_tensorflow.training import Dropout

Size = int | None
Turned = dict[tuple[str, str | None], str]


def in_float32(dtype: str) -> str:
    """The type that the graph has for one of Keras: real numbers of any width are float32."""
    return "float32" if dtype.startswith(("float", "bfloat")) else dtype


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of the Keras model: its name in the graph, its shape in Keras' order of axes, its type.

    `last` says that the graph has it with the channels moved to axis 1. `dropout` is the dropout that it comes from.
    """

    name: str
    shape: tuple[Size, ...]
    dtype: str = "float32"
    last: bool = False
    dropout: str | None = None

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether it holds real numbers."""
        return self.dtype.startswith(("float", "bfloat"))


class Emitter:
    """Collects nodes, tensors, constants and dropouts; names are unique."""

    def __init__(self, stable: StableNames) -> None:
        self._stable = stable
        self.nodes: list[Node] = []
        self.inputs: list[str] = []
        self.outputs: dict[str, str] = {}
        self.tensors: dict[str, TensorInfo] = {}
        self.weights: dict[str, WeightInfo] = {}
        self.variables: dict[str, keras.Variable] = {}
        self.arrays: dict[str, NDArray[Any]] = {}
        self.trained: set[str] = set()  # of `arrays`, what takes the place of variables that train
        self.dropouts: dict[str, Dropout] = {}
        self.momentum: dict[str, float] = {}
        self.notes: list[str] = []
        self.other_widths: set[str] = set()  # of real numbers in the model, which are float32 here
        self._names: set[str] = set()
        self._plain: dict[tuple[str, str | None], str] = {}  # graph tensor, dropout -> in Keras' order of axes
        self._first: dict[tuple[str, str | None], str] = {}  # graph tensor in Keras' order, dropout -> channels first
        self._transposed_from: dict[
            str, tuple[Value, tuple[int, ...]]
        ] = {}  # result of a user's transposition -> its source and axes
        self._paths: dict[int, str] = {}
        self._computed: dict[int, tuple[str, Computed]] = {}
        self._readers: dict[str, tuple[tuple[str, Any], ...]] = {}

    # --- names -----------------------------------------------------------------------------------------------------

    def unique(self, name: str) -> str:
        """`name`, with ``#1`` and so on where it is taken."""
        return take_name(name, self._names, "#")

    def in_float32(self, dtype: str) -> str:
        """The type of a tensor here, where the model has it in `dtype`."""
        if in_float32(dtype) != dtype:
            self.other_widths.add(dtype)
        return in_float32(dtype)

    # --- tensors ---------------------------------------------------------------------------------------------------

    def input(self, name: str, shape: Sequence[Size], dtype: str) -> Value:
        """A model input, as Keras takes it."""
        if name in self._names:
            raise ModelError(f"two inputs of the model are named {name!r}: give them different names")
        self._names.add(name)
        self.inputs.append(name)
        dtype = self.in_float32(dtype)
        value = Value(name, tuple(shape), dtype)
        self._describe(name, value.shape, dtype)
        return value

    def output(self, name: str, value: Value) -> None:
        """A model output, as Keras returns it."""
        value = self.plain(value)
        tensor = value.name
        if tensor in self.inputs:  # an input that is passed through has a tensor of its own
            tensor = self.emit("Identity", f"{name}/identity", [value], value.shape, value.dtype).name
        self.outputs[name] = tensor
        self._note_reader(value, "", name)

    def plain(self, value: Value) -> Value:
        """The value with the graph's axes in Keras' order."""
        return self._turned(value, self._plain, self._first, last_axes(value.rank), False) if value.last else value

    def first(self, value: Value) -> Value:
        """The value with the channels, last in Keras, at axis 1 of the graph's tensor."""
        if value.last or value.rank < 3:
            return value
        return self._turned(value, self._first, self._plain, first_axes(value.rank), True)

    def line(self, name: str, value: Value, axis: int) -> Value:
        """The first line of a plain value along one axis; the other axes are 1 long."""
        others = tuple(other for other in range(value.rank) if other != axis)
        if not others:
            return value
        zeros, ones = (0,) * len(others), (1,) * len(others)
        shape = tuple(size if place == axis else 1 for place, size in enumerate(value.shape))
        cut = {"starts": zeros, "ends": ones, "axes": others, "steps": ones}
        return self.emit("Slice", name, [value], shape, value.dtype, **cut)

    def truths(self, name: str, value: Value, suffix: str = "") -> Value:
        """Truth for each entry of a value, NaN too, by comparing it with itself: the graph computes no shapes."""
        same = self.emit("Equal", f"{name}/equal{suffix}", [value, value], value.shape, "bool")
        other = self.emit("Not", f"{name}/differs{suffix}", [same], value.shape, "bool")  # NaN, of itself
        return self.emit("Or", f"{name}/there{suffix}", [same, other], value.shape, "bool")

    def _turned(self, value: Value, turned: Turned, inverse: Turned, perm: tuple[int, ...], last: bool) -> Value:
        key = (value.name, value.dropout)
        if key not in turned:
            order = "channels_first" if last else "channels_last"
            transposed = self._node("Transpose", f"{value.name}/{order}", [value.name], {"perm": perm})
            self._describe(transposed, tuple(value.shape[axis] for axis in perm) if last else value.shape, value.dtype)
            self._note_reader(value, transposed, 0)
            turned[key] = transposed
            inverse[transposed, None] = value.name
        return Value(turned[key], value.shape, value.dtype, last)

    def transposed(self, value: Value, perm: Sequence[int], name: str) -> Value:
        """A transposition by the user; with four axes or more, one between the two orders moves nothing."""
        perm = tuple(axis % value.rank for axis in perm)
        shape = tuple(value.shape[axis] for axis in perm)
        if value.rank > 3 and not value.last and perm == last_axes(value.rank) and value.dropout is None:
            return Value(value.name, shape, value.dtype, last=True)
        if value.last and perm == first_axes(value.rank):
            return Value(value.name, shape, value.dtype, dropout=value.dropout)
        source = self.plain(value)
        if source.name in self._transposed_from and value.dropout is None:
            origin, before = self._transposed_from[source.name]
            if tuple(before[axis] for axis in perm) == tuple(range(value.rank)):
                return origin  # this transposition undoes the one before it
        result = self.emit("Transpose", name, [source], shape, value.dtype, perm=perm)
        self._transposed_from[result.name] = source, perm
        if perm == last_axes(value.rank):
            self._first[result.name, None] = source.name
        elif perm == first_axes(value.rank):
            self._plain[result.name, None] = source.name
        return result

    # --- constants -------------------------------------------------------------------------------------------------

    def weight(self, parameter: Any, layout: Layout = (), path: str = "") -> str:
        """A variable of the model, or what it computed of some, as a constant; `layout` makes it canonical."""
        if isinstance(parameter, VariableView):
            parameter, layout = parameter.variable, compose(parameter.layout, layout)
        if isinstance(parameter, Computed):
            return self._viewed(self._computed_source(parameter, path), _in_float32(parameter.array), layout)
        if not isinstance(parameter, keras.Variable):
            raise ModelError(f"{path or 'a weight'} is a {type(parameter).__name__}, and no variable of the model")
        source = self._path(parameter, path)
        if source not in self.variables:
            self.variables[source] = parameter
        return self._viewed(source, _in_float32(np.asarray(parameter.numpy())), layout)

    def _computed_source(self, parameter: Computed, path: str) -> str:
        if id(parameter) not in self._computed:
            source = self.unique(path)
            self._computed[id(parameter)] = source, parameter
            self.arrays[source] = _in_float32(parameter.array)
            if parameter.trainable:
                self.trained.add(source)
                of = ", ".join(self._stable.of_variable(variable) for variable in parameter.variables)
                self.notes.append(f"{source} is computed of {of}: the simulator trains the result in their place")
        return self._computed[id(parameter)][0]

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        """A constant that the model has in its code or in a setting."""
        array = _in_float32(np.asarray(value, dtype))
        source = self.unique(name)
        self.arrays[source] = array
        return self._viewed(source, array, ())

    def _path(self, variable: keras.Variable, path: str) -> str:
        key = id(variable)
        if key not in self._paths:
            keras_path = self._stable.of_variable(variable)
            self._paths[key] = self.unique(keras_path if keras_path not in self._names or not path else path)
        return self._paths[key]

    def _viewed(self, source: str, array: NDArray[Any], layout: Layout) -> str:
        steps = compose((), layout)
        alias = source
        while alias in self.weights:
            existing = self.weights[alias]
            if existing.layout == steps:
                return alias
            alias += "'"
        canonical = to_canonical(array, steps)
        self.weights[alias] = replace(WeightInfo.of(canonical, source), layout=steps)
        return alias

    # --- nodes -----------------------------------------------------------------------------------------------------

    def emit(
        self,
        op: str,
        name: str,
        inputs: Sequence[Value | str | None],
        shape: Sequence[Size],
        dtype: str = "float32",
        last: bool = False,
        /,
        **attributes: Any,
    ) -> Value:
        """A node with one output; `inputs` are values in the form that the node reads, and names of constants.

        `shape` is Keras' own, `last` says that the result is that of channels last.
        """
        names = [entry.name if isinstance(entry, Value) else entry for entry in inputs]
        dtype = self.in_float32(dtype)
        output = self._node(op, name, names, attributes)
        for index, entry in enumerate(inputs):
            if isinstance(entry, Value):
                self._note_reader(entry, output, index)
        order = first_axes(len(shape)) if last else range(len(shape))
        self._describe(output, tuple(shape[axis] for axis in order), dtype)
        return Value(output, tuple(shape), dtype, last)

    def emit_many(
        self,
        op: str,
        name: str,
        inputs: Sequence[Value | str | None],
        results: Sequence[tuple[Sequence[Size], str]],
        **attributes: Any,
    ) -> list[Value]:
        """A node with several outputs, each with a shape and a type."""
        base = self.unique(name)
        outputs = (base, *(self.unique(f"{base}:{i}") for i in range(1, len(results))))
        names = tuple(entry.name if isinstance(entry, Value) else entry for entry in inputs)
        self.nodes.append(Node(base, op, names, outputs, attributes, (base,)))
        values = []
        for output, (shape, given) in zip(outputs, results, strict=True):
            dtype = self.in_float32(given)
            self._describe(output, tuple(shape), dtype)
            values.append(Value(output, tuple(shape), dtype))
        for index, entry in enumerate(inputs):
            if isinstance(entry, Value):
                self._note_reader(entry, base, index)
        return values

    def _node(self, op: str, name: str, inputs: Sequence[str | None], attributes: dict[str, Any]) -> str:
        output = self.unique(name)
        self.nodes.append(Node(output, op, tuple(inputs), (output,), attributes, (output,)))
        return output

    def _describe(self, name: str, shape: Sequence[Size], dtype: str) -> None:
        leading = None if self._has_no_batch(name) else "batch"
        sizes: Shape = tuple(leading if axis == 0 and size is None else size for axis, size in enumerate(shape))
        self.tensors[name] = TensorInfo(sizes, dtype)

    def _has_no_batch(self, name: str) -> bool:
        """Whether a tensor follows from one whose axis 0 is not the batch."""
        node = self.nodes[-1] if self.nodes else None
        if node is None or name not in node.outputs:
            return False
        infos = (self.tensors[source] for source in node.inputs if source is not None and source in self.tensors)
        return any(info.shape and info.shape[0] is None for info in infos)

    def unmark_batch(self, name: str) -> None:
        """Axis 0 of a tensor is not the batch: samples and steps are one axis there."""
        info = self.tensors[name]
        if info.shape and not isinstance(info.shape[0], int):
            self.tensors[name] = replace(info, shape=(None, *info.shape[1:]))

    def mark_batch(self, name: str, shape: Sequence[Size], axis: int) -> None:
        """The batch of a tensor lies at `axis`: of a sequence, that is axis 1."""
        sizes: Shape = tuple("batch" if size is None and place == axis else size for place, size in enumerate(shape))
        self.tensors[name] = replace(self.tensors[name], shape=sizes)

    # --- training --------------------------------------------------------------------------------------------------

    def drop(self, value: Value, name: str, rate: float, seed: int | None, noise: Sequence[int] | None) -> Value:
        """The value through a dropout, which the graph does not have; two in a row are not told apart."""
        if not rate:
            return value
        order = first_axes(value.rank) if value.last else range(value.rank)
        axes = None if noise is None else tuple(noise[axis] for axis in order)
        if value.dropout is not None:
            self.notes.append(f"{name}: a dropout behind a dropout does not act in training")
            return value
        key = self.unique(name)
        self.dropouts[key] = Dropout(key, value.name, float(rate), seed, axes)
        return replace(value, dropout=key)

    def _note_reader(self, value: Value, node: str, index: Any) -> None:
        if value.dropout is not None:
            self._readers[value.dropout] = (*self._readers.get(value.dropout, ()), (node, index))

    # --- going back ------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All that was collected, to go back to where a layer turns out not to be read."""
        return {name: copy(value) for name, value in vars(self).items()}

    def go_back(self, state: Mapping[str, Any]) -> None:
        """Forget what was collected since `state`, which serves once."""
        vars(self).update(state)

    def emitted_since(self, state: Mapping[str, Any]) -> Any:
        """Nodes, tensors and constants since `state`, down to the values of what was computed, to be compared."""
        nodes = self.nodes[len(state["nodes"]) :]
        weights = {name: (w.shape, w.dtype, w.source, w.layout) for name, w in self.weights.items()}
        arrays = {name: _plain(array) for name, array in self.arrays.items() if name not in state["arrays"]}
        return [(n.name, n.op, n.inputs, n.outputs, _plain(n.attributes)) for n in nodes], self.tensors, weights, arrays

    # --- the result ------------------------------------------------------------------------------------------------

    def graph(self) -> Graph:
        """The raw graph, without nodes that nothing reads."""
        notes = tuple(dict.fromkeys(self.notes))
        raw = Graph(tuple(self.nodes), tuple(self.inputs), self.outputs, self.tensors, self.weights, notes)
        return drop_unread(raw)

    def dropout_list(self) -> tuple[Dropout, ...]:
        """Dropouts with their readers."""
        return tuple(replace(d, readers=self._readers.get(d.name, ())) for d in self.dropouts.values())


def _plain(value: Any) -> Any:
    """A setting or a constant as what is equal for equal values."""
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def _in_float32(array: NDArray[Any]) -> NDArray[Any]:
    """An array with real numbers of another width in float32; bfloat16 is no kind of NumPy's own."""
    return array.astype(np.float32) if array.dtype.kind in "fV" and array.dtype != np.float32 else array
