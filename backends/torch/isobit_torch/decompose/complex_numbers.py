"""Complex numbers as pairs of real ones: arithmetic that placement can read, and that ONNX can hold.

A call on complex numbers becomes calls on tensors with a last axis of two, the real and the imaginary part. Where
nothing here knows a call (a Fourier transform), it reads the pairs put together again, and its result is taken apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from isobit_torch.decompose.complex_pairs import Operand, Pairs, Parts, is_complex, is_zero
from isobit_torch.program.fx_nodes import NAME, arguments, aten, erase_unread, op_name


def in_pairs(graph: fx.Graph, root: nn.Module) -> None:
    """Let calls on complex numbers compute with their parts; in place."""
    pairs: Pairs | None = None
    for node in list(graph.nodes):
        if not isinstance(node.target, torch._ops.OpOverload) or not _is_about_complex(node):
            continue
        rule = _RULES.get(op_name(node))
        if rule is None:
            continue
        pairs = pairs or Pairs(graph, root)
        with graph.inserting_before(node):
            pairs.node, pairs.count = node, 0
            result = rule(pairs, arguments(node))
        if result is not None:
            node.replace_all_uses_with(result)
            graph.erase_node(node)
    if pairs is not None:
        erase_unread(graph, lambda node: node.op != "get_attr")


#: From the arguments by name to what stands in for the call; None where it is left.
Rule = Callable[[Pairs, Mapping[str, Any]], fx.Node | None]


def _is_about_complex(node: fx.Node) -> bool:
    return is_complex(node) or any(map(is_complex, node.all_input_nodes))


def _rank(node: fx.Node) -> int:
    return len(node.meta["val"].shape)


def _moved(dims: str) -> Rule:
    """The same move of the pairs: axes are counted from the front."""

    def rule(p: Pairs, a: Mapping[str, Any]) -> fx.Node | None:
        number = a["self"]
        changed = {**a, "self": p.pair(number)}
        rank = _rank(p.node) if op_name(p.node) == "unsqueeze" else _rank(number)
        for name in dims.split():
            axes = a[name]
            changed[name] = axes % rank if isinstance(axes, int) else [axis % rank for axis in axes]
        return p.whole(p.call(p.node.target, *changed.values()))

    return rule


def _reshaped(p: Pairs, a: Mapping[str, Any]) -> fx.Node:
    """Views too, whose memory the pairs need not share."""
    return p.whole(p.call(aten.reshape.default, p.pair(a["self"]), [*a.get("size", a.get("shape")), 2]))


def _permuted(p: Pairs, a: Mapping[str, Any]) -> fx.Node:
    rank = _rank(a["self"])
    return p.whole(p.call(aten.permute.default, p.pair(a["self"]), [*(axis % rank for axis in a["dims"]), rank]))


def _transposed(p: Pairs, a: Mapping[str, Any]) -> fx.Node:
    """Also the last two axes, which are not the last of the pairs, and both of a matrix."""
    rank = _rank(a["self"])
    if rank < 2 and "dim0" not in a:
        return p.whole(p.pair(a["self"]))
    first, second = (a["dim0"] % rank, a["dim1"] % rank) if "dim0" in a else (rank - 2, rank - 1)
    return p.whole(p.call(aten.transpose.int, p.pair(a["self"]), first, second))


def _rolled(p: Pairs, a: Mapping[str, Any]) -> fx.Node | None:
    if a["dims"]:
        return _moved("dims")(p, a)
    pair = p.pair(a["self"])
    flat = p.call(aten.roll.default, p.call(aten.reshape.default, pair, [-1, 2]), a["shifts"], [0])
    return p.whole(p.call(aten.reshape.default, flat, p.sizes(pair)))


def _squeezed(p: Pairs, a: Mapping[str, Any]) -> fx.Node:
    rank = _rank(a["self"])
    axes = a.get("dim")
    if axes is None:
        axes = [axis for axis, size in enumerate(a["self"].meta["val"].shape) if isinstance(size, int) and size == 1]
    axes = [axes % rank] if isinstance(axes, int) else [axis % rank for axis in axes]
    return p.whole(p.call(aten.squeeze.dims, p.pair(a["self"]), axes))


def _joined(p: Pairs, a: Mapping[str, Any]) -> fx.Node | None:
    tensors: Sequence[fx.Node] = a["tensors"]
    if not all(map(is_complex, tensors)):
        return None
    axis = a["dim"] % _rank(p.node)
    return p.whole(p.call(p.node.target, [p.pair(tensor) for tensor in tensors], axis))


def _taken_apart(p: Pairs, a: Mapping[str, Any]) -> fx.Node | None:
    """Split, chunk and unbind: each of the results that are read."""
    users = list(p.node.users)
    if any(op_name(user) != "getitem" for user in users):
        return None
    changed = {**a, "self": p.pair(a["self"]), "dim": a["dim"] % _rank(a["self"])}
    target: Any = p.node.target
    made = p.graph.call_function(target, tuple(changed.values()))
    made.meta[NAME], made.meta["val"] = p.node.meta[NAME], p.value_of(made)
    for user in users:
        item = p.call(user.target, made, user.args[1])
        user.replace_all_uses_with(p.whole(item))
        p.graph.erase_node(user)
    return made


def _made_of_parts(p: Pairs, a: Mapping[str, Any]) -> fx.Node | None:
    real, imaginary = a["real"], a["imag"]
    if real.meta["val"].shape != imaginary.meta["val"].shape:
        return None
    return p.number(real, imaginary)


def _product(p: Pairs, a: Mapping[str, Any]) -> fx.Node | None:
    left, right = a["self"], a["other"]
    if not is_complex(left):
        left, right = right, left
    if (scaled := _scaled(p, left, right)) is not None:
        return scaled
    if p.are_conjugate(left, right):
        real, imaginary = p.parts(left)
        return p.number(p.plus(p.times(real, real), p.times(imaginary, imaginary)), 0.0)
    real, imaginary = _multiplied(p, left, right, p.times)
    if not isinstance(real, fx.Node) and not isinstance(imaginary, fx.Node):
        return None  # times 0
    return p.number(real, imaginary)


def _scaled(p: Pairs, number: fx.Node, factor: Operand) -> fx.Node | None:
    """A complex number times a real one, or over it: both parts at once."""
    if not is_complex(number) or is_complex(factor) or isinstance(factor, complex):
        return None
    if isinstance(factor, fx.Node) and isinstance(factor.meta.get("val"), torch.Tensor):
        factor = p.call(aten.unsqueeze.default, factor, -1)
    target = aten.mul.Tensor if op_name(p.node) == "mul" else aten.div.Tensor
    return p.whole(p.call(target, p.pair(number), factor))


def _multiplied(p: Pairs, left: Operand, right: Operand, times: Callable[[Operand, Operand], Operand]) -> Parts:
    """(a + bi) (c + di) by a product of real numbers, which a plain 0 takes no part in."""

    def product(x: Operand, y: Operand) -> Operand:
        return 0.0 if is_zero(x) or is_zero(y) else times(x, y)

    (a, b), (c, d) = p.parts(left), p.parts(right)
    return p.minus(product(a, c), product(b, d)), p.plus(product(a, d), product(b, c))


def _quotient(p: Pairs, a: Mapping[str, Any]) -> fx.Node | None:
    if a.get("rounding_mode") is not None:
        return None
    left, right = a["self"], a["other"]
    if (scaled := _scaled(p, left, right)) is not None:
        return scaled
    return _over(p, left, right)


def _over(p: Pairs, left: Operand, right: Operand) -> fx.Node:
    """Times the conjugate, over the power."""
    (real, imaginary), (c, d) = p.parts(left), p.parts(right)
    power = p.plus(p.times(c, c), p.times(d, d))
    over = p.plus(p.times(real, c), p.times(imaginary, d)), p.minus(p.times(imaginary, c), p.times(real, d))
    return p.number(p.over(over[0], power), p.over(over[1], power))


def _squared(p: Pairs, a: Mapping[str, Any]) -> fx.Node | None:
    if a.get("exponent", 2) != 2:
        return None
    return p.number(*_multiplied(p, a["self"], a["self"], p.times))


def _sum_of_two(p: Pairs, a: Mapping[str, Any]) -> fx.Node | None:
    if a.get("alpha", 1) != 1:
        return None
    if is_complex(a["self"]) and is_complex(a["other"]):
        return p.whole(p.call(p.node.target, p.pair(a["self"]), p.pair(a["other"])))
    both = p.parts(a["self"]), p.parts(a["other"])
    if op_name(p.node) == "rsub":
        both = both[1], both[0]
    combined = p.plus if op_name(p.node) == "add" else p.minus
    real, imaginary = (combined(left, right) for left, right in zip(*both, strict=True))
    if isinstance(real, fx.Node) and isinstance(imaginary, fx.Node) and _shape(real) != _shape(imaginary):
        return None  # a real number that is broadcast
    return p.number(real, imaginary)


def _shape(node: fx.Node) -> str:
    return str(tuple(node.meta["val"].shape))


def _matrix_product(p: Pairs, a: Mapping[str, Any]) -> fx.Node:
    left, right = (value for name, value in a.items() if name in ("self", "mat2", "other"))
    target = p.node.target
    return p.number(*_multiplied(p, left, right, lambda x, y: p.call(target, x, y)))


def _einsum(p: Pairs, a: Mapping[str, Any]) -> fx.Node | None:
    if a.get("path") is not None or len(a["tensors"]) != 2:
        return None
    left, right = a["tensors"]
    products = _multiplied(p, left, right, lambda x, y: p.call(aten.einsum.default, a["equation"], [x, y]))
    return p.number(*products)


def _reduced(p: Pairs, a: Mapping[str, Any]) -> fx.Node | None:
    """Sums and means."""
    if a.get("dtype") is not None:
        return None
    rank, axes = _rank(a["self"]), a.get("dim")
    axes = [axes] if isinstance(axes, int) else list(axes or range(rank))
    target = aten.sum.dim_IntList if op_name(p.node) == "sum" else aten.mean.dim
    return p.whole(p.call(target, p.pair(a["self"]), [axis % rank for axis in axes], bool(a.get("keepdim"))))


def _exponential(p: Pairs, a: Mapping[str, Any]) -> fx.Node:
    real, imaginary = p.parts(a["self"])
    return p.turned(p.call(aten.exp.default, real), imaginary)


def _sign(p: Pairs, a: Mapping[str, Any]) -> fx.Node:
    """A number of size 1 in the same direction; 0 of 0."""
    real, imaginary = p.parts(a["self"])
    power = p.plus(p.times(real, real), p.times(imaginary, imaginary))
    is_nothing = p.call(aten.eq.Scalar, power, 0)
    size = p.call(aten.sqrt.default, p.call(aten.where.ScalarSelf, is_nothing, 1.0, power))
    return p.number(p.over(real, size), p.over(imaginary, size))


def _zeros(p: Pairs, a: Mapping[str, Any]) -> fx.Node:
    """Zeros to write a spectrum into."""
    sizes = a["size"] if "size" in a else p.sizes(a["self"])
    value = p.node.meta["val"]
    return p.whole(p.call(aten.zeros.default, [*sizes, 2], dtype=value.dtype.to_real(), device=value.device))


def _scattered(p: Pairs, a: Mapping[str, Any]) -> fx.Node | None:
    """A part of a spectrum that is overwritten."""
    if not is_complex(a["self"]) or not is_complex(a["src"]):
        return None
    changed = {**a, "self": p.pair(a["self"]), "src": p.pair(a["src"]), "dim": a["dim"] % _rank(a["self"])}
    return p.whole(p.call(p.node.target, *changed.values()))


def _overwritten(p: Pairs, a: Mapping[str, Any]) -> fx.Node | None:
    if not is_complex(a["self"]) or not is_complex(a["src"]):
        return None
    return p.whole(p.call(aten.copy.default, p.pair(a["self"]), p.pair(a["src"])))


def _chosen(p: Pairs, a: Mapping[str, Any]) -> fx.Node | None:
    """Where a condition holds one number, and another elsewhere."""
    condition, one, other = a["condition"], a["self"], a["other"]
    if is_complex(one) and is_complex(other):
        condition = p.call(aten.unsqueeze.default, condition, -1)
        return p.whole(p.call(aten.where.self, condition, p.pair(one), p.pair(other)))
    real, imaginary = (_where(p, condition, *both) for both in zip(p.parts(one), p.parts(other), strict=True))
    return p.number(real, imaginary) if _shape(real) == _shape(imaginary) else None


def _where(p: Pairs, condition: fx.Node, one: Operand, other: Operand) -> fx.Node:
    kinds = {(True, True): aten.where.self, (True, False): aten.where.ScalarOther, (False, True): aten.where.ScalarSelf}
    return p.call(kinds[isinstance(one, fx.Node), isinstance(other, fx.Node)], condition, one, other)


def _filled(p: Pairs, a: Mapping[str, Any]) -> fx.Node | None:
    mask, value = a["mask"], a["value"]
    if isinstance(value, fx.Node):
        return None
    parts = zip(p.parts(a["self"]), p.parts(value), strict=True)
    return p.number(*(p.call(aten.masked_fill.Scalar, part, mask, float(number)) for part, number in parts))


def _gathered(p: Pairs, a: Mapping[str, Any]) -> fx.Node:
    """Both parts of what an index names."""
    rank = _rank(a["self"])
    index = p.call(aten.expand.default, p.call(aten.unsqueeze.default, a["index"], -1), [*(-1,) * rank, 2])
    return p.whole(p.call(aten.gather.default, p.pair(a["self"]), a["dim"] % rank, index))


def _cast(p: Pairs, a: Mapping[str, Any]) -> fx.Node | None:
    """To another precision, from real numbers, or to them."""
    given, wanted = a["self"], p.node.meta["val"].dtype

    def cast(part: fx.Node, dtype: torch.dtype) -> fx.Node:
        return p.call(aten.to.dtype, part, dtype)

    if not wanted.is_complex:
        return cast(p.parts(given)[0], wanted)
    if is_complex(given):
        return p.whole(cast(p.pair(given), wanted.to_real()))
    return p.number(cast(given, wanted.to_real()), 0.0)


_RULES: Mapping[str, Rule] = {
    "permute": _permuted,
    **dict.fromkeys(("transpose", "mT", "t", "numpy_T"), _transposed),
    **dict.fromkeys(("reshape", "view", "_unsafe_view"), _reshaped),
    "flatten": _moved("start_dim end_dim"),
    **dict.fromkeys(("unflatten", "unsqueeze", "select", "slice", "narrow", "index_select"), _moved("dim")),
    "squeeze": _squeezed,
    "flip": _moved("dims"),
    "roll": _rolled,
    "expand": lambda p, a: p.whole(p.call(aten.expand.default, p.pair(a["self"]), [*a["size"], -1])),
    **dict.fromkeys(("clone", "contiguous", "alias", "detach"), lambda p, a: p.whole(p.pair(a["self"]))),
    **dict.fromkeys(("resolve_conj", "resolve_neg", "lift_fresh_copy"), lambda p, a: p.whole(p.pair(a["self"]))),
    **dict.fromkeys(("cat", "stack"), _joined),
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "unbind"), _taken_apart),
    "complex": _made_of_parts,
    "polar": lambda p, a: p.turned(a["abs"], a["angle"]),
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros"), _zeros),
    **dict.fromkeys(("slice_scatter", "select_scatter"), _scattered),
    "copy": _overwritten,
    "where": _chosen,
    "masked_fill": _filled,
    "gather": _gathered,
    "to": _cast,
    "sgn": _sign,
    "view_as_real": lambda p, a: p.pair(a["self"]),
    "real": lambda p, a: p.parts(a["self"])[0],
    "imag": lambda p, a: p.parts(a["self"])[1],
    **dict.fromkeys(("conj", "_conj", "_conj_physical", "conj_physical"), lambda p, a: p.conjugated(a["self"])),
    "neg": lambda p, a: p.whole(p.call(aten.neg.default, p.pair(a["self"]))),
    "mul": _product,
    **dict.fromkeys(("div", "true_divide"), _quotient),
    "reciprocal": lambda p, a: _over(p, 1.0, a["self"]),
    **dict.fromkeys(("square", "pow"), _squared),
    **dict.fromkeys(("add", "sub", "rsub"), _sum_of_two),
    **dict.fromkeys(("matmul", "mm", "bmm"), _matrix_product),
    "einsum": _einsum,
    **dict.fromkeys(("sum", "mean"), _reduced),
    "exp": _exponential,
}
