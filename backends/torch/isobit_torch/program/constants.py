"""Constants that a program has beside the user's own."""

from __future__ import annotations

import torch
from torch import fx, nn

from isobit.graph.free_name import free_name
from isobit_torch.program.fx_nodes import DTYPE, NAME, dtype_name
from isobit_torch.program.modules import set_tensor

#: Constants that are no part of the user's state_dict live here.
CONSTANTS = "isobit_constants"
_FACTORS = "isobit_factors"


def add_constant(root: nn.Module, graph: fx.Graph, stem: str, value: torch.Tensor) -> fx.Node:
    """A new constant outside the user's state_dict, and the node that reads it; it goes before all other nodes."""
    holder = root._modules.get(CONSTANTS)
    taken = holder._buffers if holder is not None else {}
    # `to`, `half`, `float` are methods.
    name = free_name("".join(c if c.isalnum() else "_" for c in stem), taken, dir(nn.Module))
    path = f"{CONSTANTS}.{name}"
    set_tensor(root, path, value, parameter=False, persistent=False)
    with graph.inserting_before(next(iter(graph.nodes))):
        node = graph.get_attr(path)
    node.meta[NAME], node.meta[DTYPE], node.meta["val"] = path, dtype_name(value.dtype), value
    return node


def note_factors(root: nn.Module, *paths: str) -> None:
    """Remember that a constant was computed from the user's weights at these paths, which nothing reads any more."""
    vars(root._modules[CONSTANTS]).setdefault(_FACTORS, set()).update(paths)


def factors(root: nn.Module) -> list[str]:
    """The paths of the user's weights that constants were computed from."""
    holder = root._modules.get(CONSTANTS)
    return sorted(vars(holder).get(_FACTORS, ())) if holder is not None else []
