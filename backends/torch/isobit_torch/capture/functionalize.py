"""Writing in-place operations as what they compute, so that a tensor is one value."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from isobit_torch.program.fx_nodes import full_name, op_name


def functionalize(graph: fx.Graph) -> str | None:
    """Replace in-place calls; returns the call that could not be replaced (it writes through a view), or None."""
    order = {node: index for index, node in enumerate(graph.nodes)}  # in-place calls are views of what they write, too
    for node in list(graph.nodes):
        if not _is_in_place(node):
            continue
        target = node.args[0]
        functional = _functional(node)
        if functional is None or not isinstance(target, fx.Node) or _is_shared(target, node, order):
            return full_name(node)
        node.target = functional
        readers = [user for user in target.users if user is not node and order.get(user, 0) > order[node]]
        for reader in readers:
            reader.replace_input_with(target, node)
    return None


def written_buffers(graph: fx.Graph) -> tuple[str, ...]:
    """Notes on buffers that forward itself changes: a captured program starts each time from what they were."""
    buffers: dict[str, None] = {}
    for node in graph.nodes:
        if not _is_in_place(node):
            continue
        root = node.args[0]
        while isinstance(root, fx.Node) and _may_alias(root):
            root = root.args[0]
        if isinstance(root, fx.Node) and root.op == "get_attr":
            buffers[str(root.target)] = None
    return tuple(f"forward changes the buffer {name!r}; here it keeps its value" for name in buffers)


def _is_in_place(node: fx.Node) -> bool:
    return (
        node.op == "call_function"
        and isinstance(node.target, torch._ops.OpOverload)
        and node.target._schema.is_mutable
        and not node.target._schema.name.endswith("batch_norm")
    )


def _functional(node: fx.Node) -> Any:
    """The overload of the same signature without the underscore."""
    assert isinstance(node.target, torch._ops.OpOverload)
    namespace, name = node.target._schema.name.split("::")
    if not name.endswith("_"):
        return None
    packet = getattr(getattr(torch.ops, namespace), name.rstrip("_"), None)
    overload = node.target._schema.overload_name or "default"
    return getattr(packet, overload, None) if packet is not None else None


def _is_shared(target: fx.Node, writer: fx.Node, order: dict[fx.Node, int]) -> bool:
    """Whether the write is seen by others: another node on the same memory is read after it."""
    if op_name(writer) == "detach_":
        return False
    root = target
    while _may_alias(root) and isinstance(root.args[0], fx.Node):
        root = root.args[0]
    same, queue = {root}, [root]
    while queue:
        for user in queue.pop().users:
            if user not in same and _may_alias(user) and order.get(user, 0) < order[writer]:
                same.add(user)
                queue.append(user)
    later = (user for node in same - {target} for user in node.users if user is not writer)
    return any(order.get(user, 0) > order[writer] for user in later)


#: These return their input itself, or a view of it, when there is nothing to do.
_SOMETIMES = frozenset(
    "dropout dropout_ contiguous reshape flatten to type_as relu_ feature_dropout alpha_dropout".split()
)


def _may_alias(node: fx.Node) -> bool:
    if node.op != "call_function" or not node.args:
        return False
    if not isinstance(node.target, torch._ops.OpOverload):
        return op_name(node) == "getitem"
    aliased = any(result.alias_info is not None for result in node.target._schema.returns)
    return aliased or op_name(node) in _SOMETIMES
