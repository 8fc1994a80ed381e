"""From a function to the neutral graph: its jaxpr, calls inlined, one rule for each primitive.

What JAX writes in many steps (softmax, norms, Gelu, a convolution's bias) the core brings together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.export import symbolic_shape
from jax.extend.core import ClosedJaxpr, Literal
from jax.tree_util import keystr
from numpy.typing import NDArray

from isobit.errors import ModelError
from isobit.graph import Graph, Shape
from isobit.graph_backend import GraphBuilder
from isobit_jax.native import JaxModel, outputs_by_name
from isobit_jax.rules import RULES
from isobit_jax.values import Value

#: The size of axis 0. All traces share one symbol, or their shapes could not be compared.
(BATCH,) = symbolic_shape("batch")

_TYPES = ("float32", "int32", "uint8", "int8", "bool")
_CALLS = frozenset("jit pjit closed_call core_call custom_jvp_call custom_vjp_call remat checkpoint".split())
_NOTHING = frozenset({"copy", "stop_gradient", "optimization_barrier"})


def read(model: JaxModel, example: Mapping[str, NDArray[Any]]) -> tuple[Graph, dict[str, NDArray[Any]]]:
    """The canonical graph of a model and its constants, both in canonical layout. Raises ModelError."""
    inputs = {name: _abstract(name, array) for name, array in example.items()}
    params = jax.tree.map(np.array, model.params)
    order: list[str] = []  # of the outputs, which have names while the function is traced

    def function(params: Any, arrays: Sequence[Any]) -> list[Any]:
        outputs = outputs_by_name(model.function(params, **dict(zip(inputs, arrays, strict=True))))
        order[:] = map(str, outputs)
        return list(outputs.values())

    try:
        closed = jax.make_jaxpr(function)(params, list(inputs.values()))
    except Exception as error:  # JAX raises its own kinds, the user's function anything
        reason = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
        raise ModelError(f"the function cannot be traced for any batch size: {reason}") from error
    reader = Reader()
    inputs_read = [reader.input(name, info) for name, info in inputs.items()]
    leaves = jax.tree_util.tree_leaves_with_path(params)
    constants = [reader.held(leaf, keystr(path, simple=True, separator=".") or "params") for path, leaf in leaves]
    results = map(reader.name, reader.inline(closed, [*constants, *inputs_read]))
    return reader.builder.canonical(dict(zip(order, results, strict=True)))


def _abstract(name: str, array: NDArray[Any]) -> jax.ShapeDtypeStruct:
    kind = {"float64": "float32", "int64": "int32"}.get(str(array.dtype), str(array.dtype))
    if kind not in _TYPES or array.ndim == 0:
        raise ModelError(
            f"input {name!r} is {array.dtype} of shape {array.shape}: inputs are {', '.join(_TYPES)} batches"
        )
    return jax.ShapeDtypeStruct((BATCH, *array.shape[1:]), np.dtype(kind))


def _shape(shape: Sequence[Any]) -> Shape:
    """The shape, with None for every dimension that depends on the batch size."""
    return tuple(n if isinstance(n, int) else ("batch" if n is BATCH or n == BATCH else None) for n in shape)


class Reader:
    """Follows a jaxpr and builds the graph. Rules call `node`, `number`, `moved` and `name`."""

    def __init__(self) -> None:
        self.builder = GraphBuilder()

    def inline(self, closed: Any, arguments: Sequence[Value], scope: str = "") -> list[Value]:
        """The results of a jaxpr; each node has the name of its `jax.named_scope`."""
        jaxpr, constants = (closed.jaxpr, closed.consts) if isinstance(closed, ClosedJaxpr) else (closed, ())
        variables = (*jaxpr.invars, *jaxpr.constvars)
        values = dict(zip(variables, (*arguments, *map(self.held, constants)), strict=True))

        def value(atom: Any) -> Value:
            return _like(atom.aval, literal=atom.val) if isinstance(atom, Literal) else values[atom]

        for eqn in jaxpr.eqns:
            where = "/".join(part for part in (scope, str(eqn.source_info.name_stack)) if part)
            try:
                results = self._results(eqn, [value(atom) for atom in eqn.invars], where)
            except ModelError as error:
                results = [_like(var.aval, problem=str(error)) for var in eqn.outvars]
            values.update(zip(eqn.outvars, results, strict=True))
        return [value(atom) for atom in jaxpr.outvars]

    def _results(self, eqn: Any, operands: Sequence[Value], scope: str) -> Sequence[Value]:
        name, out = eqn.primitive.name, eqn.outvars[0].aval
        inner = next((eqn.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in eqn.params), None)
        if name in _CALLS and inner is not None:
            return self.inline(inner, operands, scope)
        if name in _NOTHING or (name == "convert_element_type" and operands[0].dtype == str(out.dtype)):
            return operands[:1]
        if name == "select_n" and operands[0].is_number:
            return [operands[1 + int(operands[0].literal)]]
        if name == "max" and operands[0].is_number and operands[0].literal == -np.inf:
            return operands[1:]
        if out.shape == () and len(eqn.outvars) == 1 and all(value.is_number for value in operands):
            return [_like(out, literal=eqn.primitive.bind(*(value.literal for value in operands), **eqn.params))]
        if name not in RULES:
            place = f" (in {scope})" if scope else ""
            raise ModelError(f"the JAX backend does not read {name!r}{place}; it reads {', '.join(RULES)}")
        self.builder.scope = scope
        results = RULES[name](self, eqn, *operands)
        return [results] if isinstance(results, Value) else results

    def input(self, name: str, info: jax.ShapeDtypeStruct) -> Value:
        """An input of the model."""
        return _like(info, name=self.builder.input(name, _shape(info.shape), str(info.dtype)))

    def held(self, array: Any, name: str = "constant") -> Value:
        """A parameter, or an array that the function closes over."""
        array = np.asarray(array)
        return _like(array, name=self.builder.constant(array, name))

    def number(self, number: float) -> Value:
        """A float32 number."""
        return Value((), "float32", literal=number)

    def name(self, value: Value) -> str:
        """The graph's name of a value; a number in the code becomes a constant."""
        if value.problem or value.flipped:
            raise ModelError(value.problem or "a reversed array is read in a transposed convolution's kernel alone")
        if value.literal is not None:
            return self.builder.constant(np.asarray(value.literal, value.dtype))
        return value.name

    def node(self, op: str, operands: Sequence[Value | None], like: Any, /, **attributes: Any) -> Value:
        """The result of a node, with the shape and type of `like`."""
        names = [None if value is None else self.name(value) for value in operands]
        return _like(like, name=self.builder.node(op, names, _shape(like.shape), str(like.dtype), **attributes))

    def moved(self, value: Value, axes: Sequence[int]) -> Value:
        """The transpose of a value; itself where the axes stay. What is flipped moves along."""
        if tuple(axes) == tuple(range(len(axes))):
            return value
        turned = Value(tuple(value.shape[axis] for axis in axes), value.dtype)
        flipped = frozenset(place for place, axis in enumerate(axes) if axis in value.flipped)
        plain = replace(value, flipped=frozenset())
        return replace(self.node("Transpose", [plain], turned, perm=tuple(axes)), flipped=flipped)


def _like(info: Any, **fields: Any) -> Value:
    return Value(tuple(info.shape), str(info.dtype), **fields)
