"""Constant folding: what follows from buffers and numbers alone is computed once, at opening.

Masks over fixed sizes, frozen statistics and weights behind a parametrization (weight norm, spectral norm) become
constants. What follows from trainable parameters is left, for they must stay what the user trains and loads, but where
a layer reads it as its weight or bias: it is a weight then, and is quantized as one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from isobit_torch.program.constants import add_constant
from isobit_torch.program.fx_nodes import NAME, attribute, erase_unread, op_name

#: More elements than this are not stored beside the model.
_LARGEST = 1 << 22

#: Views of a constant stay views: the neutral graph follows them to the user's name.
_VIEWS = frozenset(
    "view reshape flatten unflatten squeeze unsqueeze transpose permute t numpy_T mT detach alias".split()
)


#: Operations that read weights, and the positions of these.
_WEIGHTS = {
    **dict.fromkeys(("linear", "conv1d", "conv2d", "conv3d", "convolution"), (1, 2)),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), (1, 2)),
    **dict.fromkeys(("matmul", "mm", "bmm"), (1,)),
    "addmm": (0, 2),
}

#: What these compute is signal, though it follows from parameters: a learned table that a layer projects.
_LAYERS = frozenset(("linear", "addmm", "embedding", "layer_norm"))


def fold_constants(graph: fx.Graph, root: nn.Module, *, keep_trained: bool = False) -> tuple[str, ...]:
    """Replace constant nodes that others read; returns notes on folded weights.

    With `keep_trained`, what follows from parameters that train is left: those of adapters, beside a frozen model.
    """
    values: dict[fx.Node, Any] = {}
    trained: set[fx.Node] = set()
    parametrized: set[fx.Node] = set()
    signal: set[fx.Node] = set()
    kept: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "get_attr":
            values[node] = attribute(root, str(node.target))
            if isinstance(values[node], nn.Parameter):
                (parametrized if ".parametrizations." in f".{node.target}" else trained).add(node)
                if keep_trained and values[node].requires_grad:
                    kept.add(node)
        elif _is_foldable(node, values):
            sources = set(node.all_input_nodes)
            if sources & kept:
                kept.add(node)
            if op_name(node) == "_weight_norm" or sources & parametrized:
                parametrized.add(node)
            elif sources & trained:
                trained.add(node)
                if op_name(node) in _LAYERS or sources & signal:
                    signal.add(node)
            with torch.no_grad():
                target: Any = node.target
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
                values[node] = target(*args, **kwargs)
    notes = []
    for node, value in values.items():
        readers = [user for user in node.users if user not in values]
        if node in trained:
            readers = [] if node in signal else [user for user in readers if _is_weight_of(node, user)]
        if node.op == "get_attr" or node in kept or not readers or not isinstance(value, torch.Tensor):
            continue
        is_large = value.numel() > _LARGEST and node not in trained
        if is_large or _shows_constant(node) or any(user.op == "output" for user in readers):
            continue
        constant = add_constant(root, graph, str(node.meta[NAME]), value.detach().clone())
        for reader in readers:
            reader.replace_input_with(node, constant)
        if node in parametrized or node in trained:
            notes.append(f"the weight that {node.meta[NAME]!r} computes is a constant: train before quantizing")
    erase_unread(graph, lambda node: node.op != "get_attr")
    return tuple(notes)


def _is_weight_of(node: fx.Node, reader: fx.Node) -> bool:
    """Whether a layer reads a node as its weight or bias, and in no other place, beside a tensor of the data."""
    if op_name(reader) == "einsum":  # with one other operand either place is a weight's
        operands: Any = reader.args[1]
        return len(operands) == 2 and list(operands).count(node) == 1
    positions = _WEIGHTS.get(op_name(reader), ())
    return bool(positions) and all(arg is not node or i in positions for i, arg in enumerate(reader.args))


def _is_foldable(node: fx.Node, values: dict[fx.Node, Any]) -> bool:
    if any(source not in values for source in node.all_input_nodes):
        return False
    if op_name(node) == "getitem":
        return True
    if not isinstance(node.target, torch._ops.OpOverload) or node.target._schema.is_mutable:
        return False
    return torch.Tag.nondeterministic_seeded not in node.target.tags and "empty" not in op_name(node)


def _shows_constant(node: fx.Node) -> bool:
    while op_name(node) in _VIEWS and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node.op == "get_attr"
