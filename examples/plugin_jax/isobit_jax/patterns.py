"""Operations that JAX writes in many steps. A pattern is a JAX function: where its own steps end at a step of the
model, that part of the model is one node, and the function's arguments are the node's inputs and settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from isobit_jax.flattening import Flat, Step, Value, trace
from isobit_jax.recurrent import gru, lstm

_COMMUTATIVE = frozenset({"add", "mul", "max", "min"})


@dataclass(frozen=True, eq=False)
class Pattern:
    """`function` of arguments of these shapes computes `op`; its first `inputs` arguments are the node's inputs.

    The arguments after them are numbers, the settings of the names `settings`.
    """

    op: str
    function: Callable[..., Any]
    shapes: Sequence[tuple[Any, ...]]
    settings: Sequence[str] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Match:
    """A node found in the model."""

    op: str
    inputs: tuple[Value, ...]
    attributes: Mapping[str, Any]


def find(step: Step) -> Match | None:
    """The node that ends at a step, if a pattern does."""
    if step.primitive == "div" and (found := _mean(step)) is not None:
        return found
    traced = (
        map(_traced, _recurrent(step)) if step.primitive == "scan" else _known(step.primitive, step.outputs[0].shape)
    )
    for pattern, flat in traced:
        bound = _unify(flat.outputs[0], step.outputs[-1], {}, frozenset(map(id, flat.inputs)))
        found = [bound.get(id(value)) for value in flat.inputs] if bound is not None else [None]
        settings = found[len(pattern.shapes) :]
        if any(value is None for value in found) or any(value.literal is None for value in settings if value):
            continue
        numbers = {name: float(v.literal) for name, v in zip(pattern.settings, settings, strict=True) if v is not None}
        inputs = tuple(value for value in found[: len(pattern.shapes)] if value is not None)
        return Match(pattern.op, inputs, {**pattern.attributes, **numbers})
    return None


def _mean(step: Step) -> Match | None:
    """The quotient of a sum and the number of its terms."""
    total, count = without_ones(step.inputs[0]).step, step.inputs[1].literal
    if total is None or total.primitive != "reduce_sum" or count is None:
        return None
    (x,), axes = total.inputs, tuple(total.params["axes"])
    terms = [x.shape[axis] for axis in axes]
    fixed = all(isinstance(n, int) for n in terms) and np.all(count == np.prod(terms))
    kept = int(len(step.outputs[0].shape) == len(x.shape))
    return Match("ReduceMean", (x,), {"axes": axes, "keepdims": kept}) if fixed else None


@cache
def _known(primitive: str, shape: tuple[Any, ...]) -> Sequence[tuple[Pattern, Flat]]:
    return [_traced(pattern) for pattern in _candidates(primitive, shape)]


def _traced(pattern: Pattern) -> tuple[Pattern, Flat]:
    shapes = [*pattern.shapes, *[()] * len(pattern.settings)]
    return pattern, trace(pattern.function, *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))


def _unify(ours: Value, theirs: Value, bound: dict[int, Value], free: frozenset[int]) -> dict[int, Value] | None:
    """What the pattern's arguments are, if the pattern's value `ours` is the model's `theirs`; None if it is not."""
    if ours.core != theirs.core or ours.dtype != theirs.dtype:
        return None
    ours, theirs = without_ones(ours), without_ones(theirs)
    if id(ours) in bound:
        return bound if bound[id(ours)] is theirs else None
    if id(ours) in free:
        return {**bound, id(ours): theirs}
    if ours.literal is not None or theirs.literal is not None:
        return bound if _same_number(ours.literal, theirs.literal) else None
    mine, model = ours.step, theirs.step
    if mine is None or model is None or mine.primitive != model.primitive or len(mine.inputs) != len(model.inputs):
        return None
    if mine.outputs.index(ours) != model.outputs.index(theirs) or not _same_settings(mine, model):
        return None
    orders = [model.inputs, model.inputs[::-1]] if mine.primitive in _COMMUTATIVE else [model.inputs]
    for order in orders:
        result: dict[int, Value] | None = bound
        for a, b in zip(mine.inputs, order, strict=True):
            lined_up = a.core == ours.core or a.padded == b.padded  # or another axis is broadcast
            result = _unify(a, b, result, free) if result is not None and lined_up else None
        if result is not None:
            return {**result, id(ours): theirs}  # which a second reader in the pattern then finds
    return None


def without_ones(value: Value) -> Value:
    """The value before steps that only add axes of size 1 to a vector or number."""
    while value.step is not None and value.step.primitive in ("broadcast_in_dim", "reshape", "expand_dims"):
        if value.step.inputs[0].core != value.core:
            break
        value = value.step.inputs[0]
    return value


def _same_number(a: Any, b: Any) -> bool:
    return a is not None and b is not None and np.shape(a) == np.shape(b) and bool(np.all(a == b))


def _same_settings(a: Step, b: Step) -> bool:
    keys = a.params.keys() - {"sharding", "out_sharding"}
    return all(str(a.params[key]) == str(b.params.get(key)) for key in keys)


def _candidates(primitive: str, shape: tuple[Any, ...]) -> Iterator[Pattern]:
    """Patterns whose last step is `primitive`."""
    if primitive == "mul":
        for approximate, name in ((False, "none"), (True, "tanh")):
            yield Pattern("Gelu", lambda x, a=approximate: jax.nn.gelu(x, a), [shape], (), {"approximate": name})
    elif primitive == "div":
        for axis in range(1, len(shape)):
            yield Pattern("Softmax", lambda x, a=axis: jax.nn.softmax(x, a), [shape], (), {"axis": axis})
    elif primitive == "min":
        yield Pattern("Clip", jnp.clip, [shape], ("min", "max"))
    elif primitive == "add" and len(shape) > 1:
        yield from _norms(shape)


def _norms(shape: tuple[Any, ...]) -> Iterator[Pattern]:
    """Batch norm over axis 1 with fixed statistics, layer norm over the last axis: the usual ways to write them."""
    divisions: tuple[Callable[..., Any], ...] = (
        lambda x, v, e, g: x / jnp.sqrt(v + e) * g,
        lambda x, v, e, g: x * jax.lax.rsqrt(v + e) * g,
        lambda x, v, e, g: x * (jax.lax.rsqrt(v + e) * g),  # Flax
    )

    def per_channel(vector: jax.Array) -> jax.Array:
        return vector.reshape(-1, *(1,) * (len(shape) - 2))

    def mean(x: jax.Array) -> jax.Array:
        return jnp.mean(x, -1, keepdims=True)

    variances: tuple[Callable[..., Any], ...] = (
        lambda x: jnp.var(x, -1, keepdims=True),
        lambda x: mean((x - mean(x)) ** 2),
        lambda x: jnp.maximum(0.0, mean(x * x) - mean(x) * mean(x)),  # Flax
    )
    for divide in divisions:
        yield Pattern(
            "BatchNormalization",
            lambda x, g, b, m, v, e, divide=divide: divide(
                x - per_channel(m), per_channel(v), e, per_channel(g)
            ) + per_channel(b),
            [shape, *[shape[1:2]] * 4], ("epsilon",),
        )  # fmt: skip
    for divide, variance in product(divisions, variances):
        yield Pattern(
            "LayerNormalization",
            lambda x, g, b, e, divide=divide, variance=variance: divide(x - mean(x), variance(x), e, g) + b,
            [shape, shape[-1:], shape[-1:]], ("epsilon",), {"axis": -1},
        )  # fmt: skip


def _recurrent(step: Step) -> Iterator[Pattern]:
    x, constants = step.inputs[-1].shape, [value.shape for value in step.inputs[: step.params["num_consts"]]]
    (w, r), biases = (s for s in constants if len(s) == 2), [s for s in constants if len(s) == 1]
    reverse = bool(step.params["reverse"])
    said = {"direction": "reverse" if reverse else "forward", "hidden_size": r[-1]}
    if w[0] == 4 * r[-1]:
        yield Pattern("LSTM", lambda *a: lstm(*a, reverse=reverse), [x, w, r, *biases], (), said)
    if w[0] == 3 * r[-1]:
        said |= {"linear_before_reset": 1}
        yield Pattern("GRU", lambda *a: gru(*a, reverse=reverse), [x, w, r, *biases], (), said)
