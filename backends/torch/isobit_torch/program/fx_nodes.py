"""Reading fx nodes: arguments by name, what a node is, and its core name, shape and type.

Every node that computes a tensor carries three entries of the backend in ``meta``: ``name`` (its name in the neutral
graph), ``shape`` and ``dtype``. Nodes that compute sizes (symbolic integers) carry no name.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

NAME, SHAPE, DTYPE = "name", "shape", "dtype"


def op_name(node: fx.Node) -> str:
    """The ATen name without its overload (``add``), ``getitem``, or "" for what is no function."""
    if node.op != "call_function":
        return ""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.split("::")[1]
    return "getitem" if node.target is operator.getitem else getattr(node.target, "__name__", "")


def full_name(node: fx.Node) -> str:
    """The name with namespace and overload, ``aten::add.Tensor``."""
    if isinstance(node.target, torch._ops.OpOverload):
        schema = node.target._schema
        return f"{schema.name}.{schema.overload_name}" if schema.overload_name else schema.name
    return str(getattr(node.target, "__name__", node.target))


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of an ATen call by name, defaults filled in."""
    assert isinstance(node.target, torch._ops.OpOverload)
    by_name: dict[str, Any] = {}
    for index, argument in enumerate(node.target._schema.arguments):
        if index < len(node.args):
            by_name[argument.name] = node.args[index]
        else:
            default = argument.default_value if argument.has_default_value() else None
            by_name[argument.name] = node.kwargs.get(argument.name, default)
    return by_name


def is_tensor(value: Any) -> bool:
    """Whether an argument is a node that computes a tensor (not a size, not a list of tensors)."""
    return isinstance(value, fx.Node) and value.meta.get(DTYPE) is not None


def is_constant(value: Any) -> bool:
    """Whether an argument is a parameter or buffer."""
    return isinstance(value, fx.Node) and value.op == "get_attr"


def is_zeros(value: Any) -> bool:
    """Whether an argument is a call that makes zeros."""
    return isinstance(value, fx.Node) and op_name(value) in ("zeros", "zeros_like", "new_zeros")


def getitems(node: fx.Node) -> dict[int, fx.Node]:
    """The nodes that take single results out of a node with several, by index."""
    by_index: dict[int, fx.Node] = {}
    for user in node.users:
        if user.op == "call_function" and user.target is operator.getitem and isinstance(user.args[1], int):
            by_index.setdefault(user.args[1], user)
    return by_index


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.float32`` as ``"float32"``."""
    return str(dtype).removeprefix("torch.")


def attribute(root: torch.nn.Module, path: str) -> Any:
    """The parameter, buffer or module at a dotted path."""
    value: Any = root
    for part in path.split("."):
        value = getattr(value, part)
    return value


def erase_unread(graph: fx.Graph, may_go: Callable[[fx.Node], bool] = lambda node: True) -> None:
    """Remove nodes that nothing reads and that `may_go`; a call's first result stays while others of it are read."""
    for node in reversed(list(graph.nodes)):
        if not node.users and not _keeps_place(node) and node.op not in ("placeholder", "output") and may_go(node):
            graph.erase_node(node)


def _keeps_place(node: fx.Node) -> bool:
    first = op_name(node) == "getitem" and node.args[1:] == (0,)
    return first and len(node.all_input_nodes[0].users) > 1


def behind(source: fx.Node) -> fx.Node:
    """The node to insert behind: inputs stay in front of everything."""
    if source.op != "placeholder":
        return source
    inputs: list[fx.Node] = [node for node in source.graph.nodes if node.op == "placeholder"]
    return inputs[-1]
