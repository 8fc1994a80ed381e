"""A jaxpr as one flat list of steps: calls are inlined, and what says nothing (copies, casts to the same type) goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

_CALLS = frozenset("jit pjit closed_call core_call custom_jvp_call custom_vjp_call remat checkpoint".split())
_NOTHING = frozenset({"copy", "stop_gradient", "optimization_barrier"})


@dataclass(eq=False)
class Value:
    """One array of a traced function; `literal` where it is a number written in the code."""

    shape: tuple[Any, ...]
    dtype: str
    literal: Any = None
    step: Step | None = field(default=None, repr=False)  # that computes it

    @property
    def core(self) -> tuple[Any, ...]:
        """The shape without axes of size 1."""
        return tuple(n for n in self.shape if n != 1)

    @property
    def padded(self) -> tuple[Any, ...]:
        """The shape without leading ones, which broadcasting adds."""
        skip = next((i for i, n in enumerate(self.shape) if n != 1), len(self.shape))
        return self.shape[skip:]


@dataclass(eq=False)
class Step:
    """One primitive, applied."""

    primitive: str
    params: Mapping[str, Any]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    scope: str = ""


@dataclass(eq=False)
class Flat:
    """A traced function: its arguments, steps in order, and results."""

    inputs: Sequence[Value]
    outputs: Sequence[Value]
    steps: Sequence[Step]
    constants: Mapping[int, Any]  # arrays that the function closes over, by position in `inputs` after the arguments


def trace(function: Callable[..., Any], *arguments: Any) -> Flat:
    """The steps of ``function(*arguments)``, arguments being pytrees of arrays or ShapeDtypeStructs."""
    return flatten(jax.make_jaxpr(function)(*arguments))


def flatten(closed: ClosedJaxpr) -> Flat:
    """The flat form of a jaxpr."""
    steps: list[Step] = []
    inputs = [_value(var.aval) for var in (*closed.jaxpr.invars, *closed.jaxpr.constvars)]
    outputs = _inline(closed.jaxpr, inputs, steps, "")
    return Flat(inputs, outputs, steps, dict(enumerate(closed.consts, len(closed.jaxpr.invars))))


def _value(aval: Any, literal: Any = None) -> Value:
    return Value(tuple(aval.shape), str(aval.dtype), literal)


def _inline(jaxpr: Any, arguments: Sequence[Value], steps: list[Step], scope: str) -> list[Value]:
    known = dict(zip((*jaxpr.invars, *jaxpr.constvars), arguments, strict=True))

    def read(atom: Any) -> Value:
        return _value(atom.aval, atom.val) if isinstance(atom, Literal) else known[atom]

    for eqn in jaxpr.eqns:
        inputs, name = [read(atom) for atom in eqn.invars], eqn.primitive.name
        inner = next((eqn.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in eqn.params), None)
        where = "/".join(part for part in (scope, str(eqn.source_info.name_stack)) if part)
        if name in _CALLS and inner is not None:
            body, constants = (inner.jaxpr, inner.consts) if isinstance(inner, ClosedJaxpr) else (inner, [])
            held = [Value(tuple(c.shape), str(c.dtype), c) for c in constants]
            results = _inline(body, [*inputs, *held], steps, where)
        elif name in _NOTHING or (name == "convert_element_type" and inputs[0].dtype == str(eqn.outvars[0].aval.dtype)):
            results = inputs[:1]
        elif name == "select_n" and inputs[0].literal is not None:
            results = [inputs[1 + int(inputs[0].literal)]]
        elif all(value.literal is not None for value in inputs) and all(v.aval.shape == () for v in eqn.outvars):
            found = eqn.primitive.bind(*(value.literal for value in inputs), **eqn.params)
            results = [_value(v.aval, x) for v, x in zip(eqn.outvars, np.atleast_1d(found), strict=True)]
        else:
            results = [_value(var.aval) for var in eqn.outvars]
            step = Step(name, eqn.params, tuple(inputs), tuple(results), where)
            for result in results:
                result.step = step
            steps.append(step)
        known.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]
