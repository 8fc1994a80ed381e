"""What the rules of a decomposition make nodes with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from isobit_torch.program.constants import add_constant
from isobit_torch.program.fx_nodes import DTYPE, NAME, aten


class Expander:
    """Makes nodes before `node` under its name."""

    def __init__(self, graph: fx.Graph, root: nn.Module) -> None:
        self.graph, self.root = graph, root
        self.node: fx.Node
        self.notes: list[str] = []

    def call(self, target: Any, *args: Any, part: str = "", like: fx.Node | None = None, **kwargs: Any) -> fx.Node:
        """A tensor node; `part` is appended to the name of the node being decomposed."""
        new_node = self.graph.call_function(target, args, kwargs)
        name = self.node.meta[NAME]
        new_node.meta[NAME] = f"{name}.{part}" if part else name
        new_node.meta[DTYPE] = (like or self.node).meta.get(DTYPE)
        return new_node

    def size(self, x: fx.Node, axis: int) -> Any:
        """One dimension of a tensor: a number, or a node where it is dynamic."""
        value = x.meta.get("val")
        if isinstance(value, torch.Tensor) and isinstance(value.shape[axis], int):
            return int(value.shape[axis])
        return self.graph.call_function(aten.sym_size.int, (x, axis))

    def constant(self, value: Any, part: str, dtype: torch.dtype = torch.float32) -> fx.Node:
        """A constant of the node being decomposed."""
        return add_constant(self.root, self.graph, f"{self.node.meta[NAME]}_{part}", torch.tensor(value, dtype=dtype))


#: A rule gets the call and its arguments by name; None where it leaves the call, or has replaced its results itself.
Rule = Callable[[Expander, fx.Node, dict[str, Any]], fx.Node | None]
