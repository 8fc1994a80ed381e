"""Traced passes, which all models of one structure share: tracing one takes as long as many passes.

The variables are arguments of the function and are not captured. So a copy, a model whose weights an edit has changed,
and one that is opened a second time run what was traced for the first.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from threading import Lock
from typing import Any, Literal, Protocol

import keras
import tensorflow as tf

from isobit.graph import Graph, Site, graph_to_record
from isobit.graph_backend import Tap
from isobit_tensorflow.kernels.native import NATIVE
from isobit_tensorflow.kernels.operands import Operand, Rounding
from isobit_tensorflow.simulate.quantizers import Quantizer
from isobit_tensorflow.simulate.simulator import Simulator
from isobit_tensorflow.simulate.variables import native_variable

#: The quantizers of a pass: none of them, all of them, or each behind its switch.
Switches = Literal["float", "simulated", "switched"]

#: How many operations of TensorFlow the functions that are kept have together; of larger ones the last is kept.
_MOST = 200_000

Feeds = Mapping[str, tf.Tensor]


class Pass(Protocol):
    """One pass over a batch: the outputs by name. `tap` and `only` are of `isobit.graph_backend.run_graph`.

    Of a `part` of the graph, where one is given, with that part's inputs as the batch.
    """

    def __call__(
        self,
        feeds: Feeds,
        *,
        tap: Callable[[Tap, Operand], None] | None = None,
        only: Collection[Tap] | None = None,
        part: Graph | None = None,
    ) -> dict[str, tf.Tensor]:
        """Run it."""
        ...


class TracedPass:
    """A traced function of a batch, with the variables of one simulator."""

    def __init__(self, function: Any, variables: Sequence[Any]) -> None:
        self._function, self._variables = function, variables

    def __call__(self, feeds: Feeds) -> Any:
        """What the function returns for a batch."""
        return self._function(feeds, self._variables)


def trace(
    simulator: Simulator,
    switches: Switches,
    what: Hashable,
    compute: Callable[[Feeds, Pass], Any],
    part: Graph | None = None,
) -> TracedPass:
    """`compute`, which gets a batch and the pass to run on it; `what` says all that it depends on beside the pass.

    With a `part` of the graph the batch has that part's inputs, and the pass knows what that part reads alone.
    """
    read = _Read.of(simulator, switches, part)
    variables = [native_variable(variable) for variable in read.variables]
    key = what, switches, _structure(simulator, read, variables)
    function = _KEPT.get(key)
    if function is None:
        function = _traced(simulator, switches, read, variables, compute)
        _KEPT.keep(key, function)
    return TracedPass(function, variables)


@dataclass(frozen=True, eq=False)
class _Read:
    """What a pass over a graph reads: parameters by name, and quantizers, those that others follow among them."""

    graph: Graph
    parameters: Mapping[str, keras.Variable]
    layers: Sequence[Quantizer]

    @classmethod
    def of(cls, simulator: Simulator, switches: Switches, part: Graph | None) -> _Read:
        layers: Sequence[Quantizer] = simulator.quantizer_layers if switches != "float" else ()
        if part is None:
            return cls(simulator.graph, simulator.parameters, layers)
        sources = {info.source or name for name, info in part.weights.items()}
        followed = {id(other) for layer in layers if part.has_site(layer.site) for other in layer.followed()}
        return cls(
            part,
            {name: variable for name, variable in simulator.parameters.items() if name in sources},
            [layer for layer in layers if id(layer) in followed],
        )

    @property
    def variables(self) -> list[keras.Variable]:
        return [*self.parameters.values(), *(variable for layer in self.layers for variable in layer.held)]


def _traced(
    simulator: Simulator,
    switches: Switches,
    read: _Read,
    variables: Sequence[Any],
    compute: Callable[[Feeds, Pass], Any],
) -> Any:
    held = read.variables

    def traced(feeds: Feeds, arguments: Sequence[tf.Variable]) -> Any:
        given = {id(variable): argument for variable, argument in zip(held, arguments, strict=True)}
        parameters = {name: given[id(variable)] for name, variable in read.parameters.items()}

        def value(variable: keras.Variable) -> tf.Tensor:
            return tf.convert_to_tensor(given[id(variable)])

        rounding: dict[Site, Rounding] = {}
        for layer in read.layers:
            rounding[layer.site] = partial(layer.rounded if switches == "simulated" else layer.switched, read=value)
        return compute(feeds, partial(simulator.run_named, parameters=parameters, rounding=rounding))

    return tf.function(traced, autograph=False).get_concrete_function(_signature(read.graph), list(variables))


def _signature(graph: Graph) -> dict[str, tf.TensorSpec]:
    """Inputs of any batch size: a smaller last batch is traced no second time."""
    specs = {}
    for name in graph.inputs:
        info = graph.tensors[name]
        shape = info.shape and [n if axis and isinstance(n, int) else None for axis, n in enumerate(info.shape)]
        specs[name] = tf.TensorSpec(shape, info.dtype)
    return specs


def _structure(simulator: Simulator, read: _Read, variables: Sequence[Any]) -> Hashable:
    """All that a trace depends on beside what it computes: everything but the values of the variables."""
    if any(node.op.startswith(NATIVE) for node in read.graph.nodes):
        return id(simulator), object()  # what layers of Keras hold is theirs: their passes are not shared
    record = graph_to_record(read.graph)
    del record["notes"]
    for entry in record["weights"].values():
        entry["value"] = entry["magnitude"] = None  # kernels read variables
    kinds = [[variable.dtype.name, list(variable.shape), variable.device] for variable in variables]
    text = json.dumps([record, list(read.parameters), kinds, simulator.compute_dtype])
    return sha256(text.encode()).digest(), tuple(layer.structure for layer in read.layers)


class _Kept:
    """The functions that were used last, as many as hold a number of operations."""

    def __init__(self, most: int) -> None:
        self._most, self._size, self._lock = most, 0, Lock()
        self._functions: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def get(self, key: Hashable) -> Any:
        with self._lock:
            if key not in self._functions:
                return None
            self._functions.move_to_end(key)
            return self._functions[key][0]

    def keep(self, key: Hashable, function: Any) -> None:
        with self._lock:
            _, known = self._functions.pop(key, (None, 0))
            size = len(function.graph.get_operations())
            self._functions[key] = function, size
            self._size += size - known
            while self._size > self._most and len(self._functions) > 1:
                _, (_, size) = self._functions.popitem(last=False)
                self._size -= size


_KEPT = _Kept(_MOST)
