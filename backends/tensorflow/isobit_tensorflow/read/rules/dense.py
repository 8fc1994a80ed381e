"""Linear layers, products of tensors, attention's inside, look-ups."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from string import ascii_letters
from typing import Any

import keras
import numpy as np
from keras import ops

from isobit.errors import ModelError
from isobit.graph import Layout, Permute, View
from isobit.graph.layout import TRANSPOSED
from isobit_tensorflow.read.call import Call, Rule
from isobit_tensorflow.read.emitter import Size, Value
from isobit_tensorflow.read.parameters import is_parameter
from isobit_tensorflow.read.rules.activations import activate
from isobit_tensorflow.read.rules.categories import entries_taken
from isobit_tensorflow.read.rules.low_rank import add_change, has_adapter, with_adapter
from isobit_tensorflow.read.rules.merging import broadcast
from isobit_tensorflow.read.rules.shapes import reshape
from isobit_tensorflow.read.rules.steps.counting import places_of


def linear(call: Call, name: str, x: Value, kernel: Any, layout: Layout, bias: Any = None, flat: Layout = ()) -> Value:
    """The last axis of Keras times a weight that `layout` makes (out, in)."""
    e = call.emitter
    weight = e.weight(kernel, layout, f"{name}/kernel")
    operands = [weight] if bias is None else [weight, e.weight(bias, flat, f"{name}/bias")]
    out = e.weights[weight].shape[0]
    return e.emit("Linear", name, [e.plain(x), *operands], (*x.shape[:-1], out), x.dtype)


def _dense(call: Call) -> Value:
    layer = call.operation

    def apply(name: str, x: Value, kernel: Any, is_whole: bool) -> Value:
        return linear(call, name, x, kernel, TRANSPOSED, layer.bias if is_whole and layer.use_bias else None)

    result = with_adapter(call, apply, apply)
    return activate(call.reader, layer.activation, result, call.name)


def _einsum_dense(call: Call) -> Value | None:
    """One Linear, where the equation sums the input's last axes with axes of the kernel; else its operations."""
    layer = call.operation
    if has_adapter(layer):
        result = _einsum_with_adapter(call)
    else:
        result = _einsum_linear(call, layer.equation, call.x, layer.kernel, layer.bias)
    return None if result is None else activate(call.reader, layer.activation, result, call.name)


def _einsum_with_adapter(call: Call) -> Value | None:
    """The small kernels share an axis in place of the last one of the kernel: each is an einsum of its own."""
    layer, x, name = call.operation, call.x, call.name
    left, target = layer.equation.replace(" ", "").split("->")
    source, kernel = left.split(",")
    last, first, rank = kernel[-1], kernel[:-1], next(c for c in ascii_letters if c not in layer.equation)
    if last in target:
        low = target.replace(last, rank)
        down, up = f"{source},{first}{rank}->{low}", f"{low},{rank}{last}->{target}"
        kernels = layer.lora_kernel_a, layer.lora_kernel_b
    else:  # the kernel's last axis is summed: the second one comes first
        low = source.replace(last, rank)
        down, up = f"{source},{rank}{last}->{low}", f"{low},{first}{rank}->{target}"
        kernels = layer.lora_kernel_b, layer.lora_kernel_a
    base = _einsum_linear(call, layer.equation, x, layer._kernel, layer.bias, f"{name}/base")
    low_part = _einsum_linear(call, down, x, kernels[0], None, f"{name}/lora_a")
    change = None if low_part is None else _einsum_linear(call, up, low_part, kernels[1], None, f"{name}/lora_b")
    return None if base is None or change is None else add_change(call, base, change)


def _einsum_linear(call: Call, equation: str, x: Value, weight: Any, bias: Any = None, name: str = "") -> Value | None:
    name = name or call.name
    plan = _plan(equation, x.rank)
    if plan is None:
        return None
    source, kernel, target, summed, added = plan
    kept = [label for label in source if label not in summed]
    sizes = dict(zip(kernel, weight.shape, strict=True))
    x = _transpose_to(call, x, source, kept + summed, f"{name}/input")
    inner = math.prod(sizes[label] for label in summed)
    if len(summed) > 1:
        x = reshape(call, x, (*x.shape[: len(kept)], inner), f"{name}/rows")
    outer = [sizes[label] for label in added]
    layout: Layout = (Permute(tuple(kernel.index(label) for label in [*added, *summed])),)
    ordered = (*outer, *(sizes[label] for label in summed))
    if len(ordered) > 2 or len(added) != 1:
        layout = (*layout, View((math.prod(outer), inner), ordered))
    flat: Layout = ()
    if bias is not None and tuple(bias.shape) != (math.prod(outer),):
        if [n for n in bias.shape if n != 1] != [n for n in outer if n != 1]:
            return None
        flat = (View((math.prod(outer),), tuple(bias.shape)),)
    order = [*kept, *added]
    final = order == target and len(added) == 1
    result = linear(call, name, x, weight, layout, bias, flat)
    if not final:
        if len(added) != 1:
            result = reshape(call, result, (*result.shape[:-1], *outer), f"{name}/heads")
        result = _transpose_to(call, result, order, target, f"{name}/output")
    return result


def _plan(equation: str, rank: int) -> tuple[list[str], list[str], list[str], list[str], list[str]] | None:
    """Labels of input, kernel and output, those that are summed, and those that the kernel adds."""
    left, target = equation.replace(" ", "").split("->")
    source, kernel = left.split(",")
    if "..." in equation:
        spare = [chr(0x3B1 + i) for i in range(rank - len(source.replace("...", "")))]
        source, target = (part.replace("...", "".join(spare)) for part in (source, target))
    if "." in kernel or len(source) != rank or len(set(source)) != rank or len(set(kernel)) != len(kernel):
        return None
    summed = [label for label in source if label in kernel and label not in target]
    added = [label for label in target if label not in source]
    if set(summed) | set(added) != set(kernel) or not summed or not added:
        return None
    return list(source), list(kernel), list(target), summed, added


def _transpose_to(call: Call, x: Value, source: Sequence[str], target: Sequence[str], name: str) -> Value:
    if list(source) == list(target):
        return x
    return call.emitter.transposed(x, [list(source).index(label) for label in target], name)


def matmul(call: Call, a: Any, b: Any, name: str = "") -> Value | None:
    """A product of two tensors, or of a tensor and a constant matrix."""
    e, name = call.emitter, name or call.name
    if isinstance(a, Value) and is_parameter(b) and len(b.shape) == 2:
        return linear(call, name, a, b, TRANSPOSED)
    if not isinstance(a, Value) or not isinstance(b, Value) or a.rank < 2 or b.rank < 2:
        return _matmul_of_constant(call, a, b, name)
    rank = max(a.rank, b.rank)
    batch: list[Size] = []
    for axis in range(-rank, -2):
        sizes = [v.shape[axis] for v in (a, b) if -axis <= v.rank]
        batch.append(next((n for n in sizes if n != 1), 1))
    return e.emit("MatMul", name, [e.plain(a), e.plain(b)], (*batch, a.shape[-2], b.shape[-1]), a.dtype)


def _matmul_of_constant(call: Call, a: Any, b: Any, name: str) -> Value | None:
    """A constant matrix on the left, or a stack of matrices on either side."""
    e = call.emitter
    if not all((isinstance(side, Value) or is_parameter(side)) and len(side.shape) >= 2 for side in (a, b)):
        return None
    if not isinstance(a, Value) and not isinstance(b, Value):
        return None
    rank = max(len(a.shape), len(b.shape))
    lead = [(1,) * (rank - len(side.shape)) + tuple(side.shape[:-2]) for side in (a, b)]
    batch = [m if n == 1 else n for n, m in zip(*lead, strict=True)]
    sides = [
        e.plain(side) if isinstance(side, Value) else e.weight(side, (), f"{name}/{label}")
        for side, label in ((a, "left"), (b, "right"))
    ]
    return e.emit("MatMul", name, sides, (*batch, a.shape[-2], b.shape[-1]))


def _matmul(call: Call) -> Value | None:
    return matmul(call, call.argument(0), call.argument(1))


def _dot(call: Call) -> Value | None:
    """The last axis times a constant matrix, as a product of matrices."""
    a, b = call.argument(0), call.argument(1)
    return matmul(call, a, b) if isinstance(a, Value) and is_parameter(b) and len(b.shape) == 2 else None


def _einsum(call: Call) -> Value | None:
    """Of two tensors: transpositions around one MatMul, where every label is batch, row, column or summed."""
    operands = call.args if len(call.args) == 2 else call.args[0] if isinstance(call.args[0], Sequence) else ()
    equation = str(call.setting("subscripts")).replace(" ", "")
    if len(operands) == 2 and isinstance(operands[0], Value) and is_parameter(operands[1]):
        return _einsum_linear(call, equation, operands[0], operands[1]) if "->" in equation else None
    if len(operands) != 2 or not all(isinstance(operand, Value) for operand in operands):
        return None
    if "..." in equation or "->" not in equation:
        return None
    left, target = equation.split("->")
    first, second = left.split(",")
    batch = [label for label in target if label in first and label in second]
    summed = [label for label in first if label in second and label not in target]
    rows = [label for label in first if label in target and label not in second]
    columns = [label for label in second if label in target and label not in first]
    parts = (batch, summed, rows, columns)
    fits = len(first) == len(batch) + len(summed) + len(rows) and len(second) == len(batch) + len(summed) + len(columns)
    if not fits or any(len(part) != 1 for part in parts[1:]):
        return None
    a = _transpose_to(call, operands[0], first, [*batch, *rows, *summed], f"{call.name}/left")
    b = _transpose_to(call, operands[1], second, [*batch, *summed, *columns], f"{call.name}/right")
    product = matmul(call, a, b)
    assert product is not None
    return _transpose_to(call, product, [*batch, *rows, *columns], list(target), f"{call.name}/output")


def _tensordot(call: Call) -> Value | None:
    """As an einsum of the same sums."""
    a, b, axes = call.argument(0), call.argument(1), call.setting("axes")
    if not isinstance(a, Value) or not (is_parameter(b) or isinstance(b, Value)):
        return None
    ranks = len(a.shape), len(b.shape)
    if isinstance(axes, int):
        axes = (range(ranks[0] - axes, ranks[0]), range(axes))
    first, second = ([axes_of] if isinstance(axes_of, int) else list(axes_of) for axes_of in axes)
    left = [chr(ord("a") + axis) for axis in range(ranks[0])]
    right = [chr(ord("A") + axis) for axis in range(ranks[1])]
    for one, other in zip(first, second, strict=True):
        right[other % ranks[1]] = left[one % ranks[0]]
    kept = [label for label in (*left, *right) if (label in left) != (label in right)]
    equation = f"{''.join(left)},{''.join(right)}->{''.join(kept)}"
    return _einsum_linear(call, equation, a, b) if is_parameter(b) else None


def _attention(call: Call) -> Value | None:
    """(batch, time, heads, size) each: MatMul(Q, Kᵀ) with the scale, mask, Softmax, MatMul."""
    query, key, value, bias, mask = (call.argument(index) for index in range(5))
    e, name = call.emitter, call.name
    causal = bool(call.setting("is_causal"))
    if call.setting("attn_logits_soft_cap") is not None:
        raise ModelError(f"{name!r}: a soft cap on the scores is not read")
    key, value = (_for_each_query(call, part, query.shape[2]) for part in (key, value))
    scale = call.argument(5) or call.kwargs.get("scale") or 1 / math.sqrt(query.shape[-1])
    q, v = (e.transposed(t, (0, 2, 1, 3), f"{name}/{label}") for t, label in ((query, "query"), (value, "value")))
    k = e.transposed(key, (0, 2, 3, 1), f"{name}/key")
    q, k, v = e.plain(q), e.plain(k), e.plain(v)
    shape = (*q.shape[:-1], k.shape[-1])
    scores = e.emit("MatMul", f"{name}/scores", [q, k], shape, q.dtype, scale=float(scale))
    if bias is not None:
        scores = broadcast(call, "Add", [scores, bias], f"{name}/biased")
    if mask is not None:
        scores = broadcast(call, "Where", [mask, scores, np.float32(-1e9)], f"{name}/masked", scores.dtype)
    if causal:
        past = _past(call, query, key)
        scores = broadcast(call, "Where", [past, scores, np.float32(-1e9)], f"{name}/causal", scores.dtype)
    weights = e.emit("Softmax", f"{name}/softmax", [scores], shape, q.dtype, axis=-1)
    mixed = e.emit("MatMul", f"{name}/mixed", [weights, v], (*shape[:-1], v.shape[-1]), q.dtype)
    return e.transposed(mixed, (0, 2, 1, 3), name)


def _for_each_query(call: Call, part: Value, heads: Size) -> Value:
    """Keys or values (batch, time, heads, size), each head as often as queries share it."""
    own = part.shape[2]
    if own == heads or not own or not heads:
        return part
    times = heads // own
    repeated: Value = call.reader.open(
        lambda tensor: ops.repeat(tensor, times, axis=2), f"{part.name}/shared", (part,), {}, call.operation
    )
    return repeated


def _past(call: Call, query: Value, key: Value) -> Any:
    """Which steps of the keys are not behind one of the queries, (queries, keys): a constant for known lengths."""
    if query.shape[1] is not None and key.shape[1] is not None:
        return np.tril(np.ones((query.shape[1], key.shape[1]), bool))
    rows = _places(call, query, (0, 2, 1, 3), f"{call.name}/row")
    return broadcast(call, "GreaterOrEqual", [rows, _places(call, key, (0, 2, 3, 1), f"{call.name}/column")],
                     f"{call.name}/past", "bool")  # fmt: skip


def _places(call: Call, steps: Value, perm: tuple[int, ...], name: str) -> Value:
    """1, 2, ... for each step of (batch, time, heads, size), with the axes turned by `perm`; the others are 1 long."""
    e = call.emitter
    return e.plain(e.transposed(places_of(call, steps, 1, name), perm, name))


def _embedding(call: Call) -> Value:
    layer, e, ids, name = call.operation, call.emitter, call.emitter.plain(call.x), call.name
    if not has_adapter(layer):
        return _look_up(call, e.weight(layer.embeddings, (), f"{name}/embeddings"), layer.output_dim, ids, name)
    base = e.weight(layer._embeddings, (), f"{name}/embeddings")
    low = e.weight(layer.lora_embeddings_a, (), f"{name}/lora_embeddings_a")
    rows = _look_up(call, low, layer.lora_rank, ids, f"{name}/lora_a")
    change = linear(call, f"{name}/lora_b", rows, layer.lora_embeddings_b, TRANSPOSED)
    return add_change(call, _look_up(call, base, layer.output_dim, ids, f"{name}/base"), change)


def _look_up(call: Call, table: str, size: int, ids: Value, name: str) -> Value:
    e = call.emitter
    if ids.is_float:  # Keras takes float ids too, and drops their fractions
        ids = e.emit("Cast", f"{name}/ids", [ids], ids.shape, "int32", to="int32")
    return e.emit("Gather", name, [table, ids], (*ids.shape, size), axis=0)


def _take(call: Call) -> Value | None:
    table, ids = call.argument(0), call.argument(1)
    if isinstance(table, Value):
        return entries_taken(call)
    if not is_parameter(table) or not isinstance(ids, Value) or call.setting("axis") not in (0, None):
        return None
    if len(table.shape) != 2:
        return None
    return _look_up(call, call.emitter.weight(table, (), f"{call.name}/table"), table.shape[-1], ids, call.name)


LAYERS: Mapping[type, Rule] = {
    keras.layers.Dense: _dense,
    keras.layers.EinsumDense: _einsum_dense,
    keras.layers.Embedding: _embedding,
}

OPERATIONS: Mapping[str, Callable[[Call], Any]] = {
    "Matmul": _matmul,
    "Dot": _dot,
    "Einsum": _einsum,
    "Tensordot": _tensordot,
    "DotProductAttention": _attention,
    "Take": _take,
}
