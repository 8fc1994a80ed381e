"""A random ONNX graph while it is drawn: every node is run when it is added, so that shapes and values are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]

#: Values beyond this say nothing of quantization: sums of them overflow.
LARGEST = 1e4
MOST_ELEMENTS = 6000


class RejectedError(Exception):
    """A node that does not run here, or whose result is of no use: another is drawn instead."""


@dataclass(eq=False)
class Value:
    """A tensor: its name, what it holds for the first batch, and whether axis 0 is the batch."""

    name: str
    array: Array
    batched: bool = True
    constant: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def rank(self) -> int:
        return self.array.ndim

    @property
    def is_float(self) -> bool:
        return self.array.dtype == np.float32


@dataclass
class Drawing:
    """The graph so far. `named` makes a name of a kind of thing and a number."""

    rng: np.random.Generator
    opset: int
    named: Callable[[str, int], str]
    node_named: Callable[[str, int], str]
    fixed_batch: bool
    constant_nodes: float
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    weights: list[Value] = field(default_factory=list)
    ops: list[str] = field(default_factory=list)
    count: int = 0

    # --- drawing numbers ---------------------------------------------------------------------------------------------

    def integer(self, low: int, high: int) -> int:
        """From `low` to `high`, both included."""
        return int(self.rng.integers(low, high + 1))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def one_of(self, choices: Sequence[Any]) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def pick(self, ranks: Sequence[int] = (), *, kind: str = "float", batched: bool = True) -> Value:
        """A tensor of the graph, a late one rather than an early one."""
        fits = [
            value
            for value in self.values
            if (not ranks or value.rank in ranks)
            and (value.array.dtype.kind == {"float": "f", "bool": "b", "int": "i"}[kind])
            and (value.batched or not batched)
        ]
        if not fits:
            raise RejectedError("no such tensor")
        return fits[-1 - min(int(self.rng.geometric(0.45)) - 1, len(fits) - 1)]

    # --- adding ------------------------------------------------------------------------------------------------------

    def fresh(self, kind: str) -> str:
        self.count += 1
        return self.named(kind, self.count)

    def constant(self, array: Any, kind: str = "const", *, weight: bool = False) -> Value:
        """A constant as an initializer or a Constant node."""
        array = np.asarray(array)
        value = Value(self.fresh(kind), array, batched=False, constant=True)
        tensor = numpy_helper.from_array(array, value.name)
        if self.chance(self.constant_nodes):
            self.nodes.append(helper.make_node("Constant", [], [value.name], value=tensor))
        else:
            self.initializers.append(tensor)
        if weight:
            self.weights.append(value)
        return value

    def weight(self, *shape: int, scale: float | None = None) -> Value:
        """A weight; now and then one that another node reads already."""
        same = [w for w in self.weights if w.shape == shape]
        if same and self.chance(0.3):
            return self.one_of(same)
        fan_in = max(1, int(np.prod(shape[1:] if len(shape) > 1 else shape)))
        width = scale if scale is not None else 1.2 / np.sqrt(fan_in)
        array = (self.rng.standard_normal(shape) * width).astype(np.float32)
        if len(shape) > 1 and self.chance(0.2):  # channels of very different sizes
            array *= np.exp(self.rng.normal(0, 1, (shape[0], *[1] * (len(shape) - 1)))).astype(np.float32)
        return self.constant(array, "weight", weight=True)

    def vector(self, size: int, low: float = -0.5, high: float = 0.5) -> Value:
        return self.constant(self.rng.uniform(low, high, size).astype(np.float32), "vector", weight=True)

    def ints(self, *values: int) -> Value:
        return self.constant(np.array(values, np.int64), "ints")

    def add(
        self, op: str, inputs: Sequence[Value | None], outputs: int = 1, batched: bool | None = None, **attributes: Any
    ) -> Value:
        """A node of one result that is used."""
        return self.add_several(op, inputs, outputs, batched, **attributes)[0]

    def add_several(
        self, op: str, inputs: Sequence[Value | None], outputs: int = 1, batched: bool | None = None, **attributes: Any
    ) -> list[Value]:
        """A node, run at once. Raises RejectedError where onnxruntime does not run it, or for a useless result."""
        names = ["" if value is None else value.name for value in inputs]
        self.count += 1
        results = [self.fresh(op.lower()) for _ in range(outputs)]
        node = helper.make_node(op, names, results, name=self.node_named(op, self.count), **attributes)
        given = {value.name: value for value in inputs if value is not None}
        arrays = evaluate(node, list(given.values()), self.opset)
        for array in arrays:
            _check_useful(array)
        self.nodes.append(node)
        self.ops.append(op)
        read = [value for value in inputs if value is not None and not value.constant]
        is_batched = any(value.batched for value in read) if batched is None else batched
        return [Value(name, array, is_batched, constant=not read) for name, array in zip(results, arrays, strict=True)]

    def keep(self, *values: Value) -> None:
        """Let later nodes read these."""
        self.values.extend(values)


def evaluate(node: onnx.NodeProto, inputs: Sequence[Value], opset: int) -> list[Array]:
    """The results of one node in onnxruntime, computed as it is written."""
    types = [helper.np_dtype_to_tensor_dtype(value.array.dtype) for value in inputs]
    fed = [value for value in inputs if not value.constant]
    infos = [
        helper.make_tensor_value_info(value.name, kind, value.shape)
        for value, kind in zip(inputs, types, strict=True)
        if not value.constant
    ]
    constants = [numpy_helper.from_array(value.array, value.name) for value in inputs if value.constant]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
    graph = helper.make_graph([node], "node", infos, outputs, constants)
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))
    try:
        return run(model, {value.name: value.array for value in fed})
    except Exception as error:  # onnxruntime raises its own kinds
        raise RejectedError(f"{node.op_type} of opset {opset}: {error}") from error


def run(model: onnx.ModelProto, feeds: dict[str, Array], level: str = "ORT_DISABLE_ALL") -> list[Array]:
    """Outputs of a model in onnxruntime."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(array) for array in session.run(None, feeds)]


def _check_useful(array: Array) -> None:
    if array.size == 0 or array.size > MOST_ELEMENTS * 4 or array.dtype.kind not in "fib":
        raise RejectedError("empty or too large")
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and np.abs(array).max() < LARGEST):
        raise RejectedError("not finite or too large")
