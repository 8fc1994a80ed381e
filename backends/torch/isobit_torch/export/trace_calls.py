"""Calls in the form in which torch.jit.trace records them.

A call of ``torch.ops.aten`` receives sizes as plain numbers, so its trace would hold the batch size of the example for
ever; Python functions and methods of torch keep track of where a size came from.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from isobit.errors import ModelError
from isobit_torch.program.fx_nodes import aten, full_name, op_name


def make_traceable(graph: fx.Graph) -> None:
    """Rewrite the calls that read or take a size. Raises ModelError for one that has no such form."""
    sizes: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if node.target is aten.sym_size.int:
            node.target = Tensor.size
        elif op_name(node) == "fill":
            node.target = filled
            continue
        elif sizes.isdisjoint(node.all_input_nodes):
            continue
        elif isinstance(node.target, torch._ops.OpOverload):
            node.target = _python_form(node)
            continue
        sizes.add(node)  # arithmetic of sizes too


def _python_form(node: fx.Node) -> Any:
    name = op_name(node)
    if name == "slice":
        return sliced
    call: Any = node.target
    owner: Any = Tensor if call._schema.arguments[0].name == "self" else torch
    function = getattr(owner, name, None) or getattr(torch, name, None)
    if function is None:
        raise ModelError(f"{full_name(node)} takes a dynamic size, which TorchScript cannot follow: export to 'onnx'")
    return function


def sliced(x: Tensor, dim: int = 0, start: Any = None, end: Any = None, step: Any = 1) -> Tensor:
    """``aten::slice`` by Python's indexing."""
    axis = dim if dim >= 0 else dim + x.ndim
    return x[(*[slice(None)] * axis, slice(start, end, step))]


def filled(x: Tensor, value: Any) -> Tensor:
    """``aten::fill`` of a number or a tensor, which TorchScript cannot record."""
    return value.to(x.dtype).expand_as(x).clone() if isinstance(value, Tensor) else torch.full_like(x, value)
