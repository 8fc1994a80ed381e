"""What a rule from an ATen call to the neutral vocabulary is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from isobit_torch.program.fx_nodes import SHAPE

Arguments = dict[str, Any]

#: From a call and its arguments to (op, inputs, attributes), None where the call has no neutral form.
Rule = Callable[[fx.Node, Arguments], Any]


def rank(node: fx.Node) -> int:
    """Number of axes of a node's tensor."""
    return len(node.meta[SHAPE])
