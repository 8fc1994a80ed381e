"""Core names of nodes: the path of the module that computes them, ``#n`` for repeats."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from isobit.graph.free_name import take_name
from isobit_torch.program.fx_nodes import DTYPE, NAME, op_name

_CONTAINERS = ("torch.nn.modules.container.",)


def name_by_module(graph: fx.Graph, leaves: frozenset[str]) -> None:
    """Give every function node the stem of its name: the path of a leaf module, or ``<caller's path>.<op>``."""
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        path, kind = _caller(node)
        own = path in leaves and kind.startswith("torch.nn.") and not kind.startswith(_CONTAINERS)
        op = op_name(node).rstrip("_")
        node.meta[NAME] = path if own and path else f"{path}.{op}" if path else op


def _caller(node: fx.Node) -> tuple[str, str]:
    stack = node.meta.get("nn_module_stack") or {}
    frames = [
        frame for frame in stack.values() if isinstance(frame, tuple) and not str(frame[0]).startswith("_empty_nn")
    ]
    if not frames:
        return "", ""
    path, kind = frames[-1]
    text = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    return str(path).split("@")[0].removeprefix("L['self'].").removeprefix("L['self']"), text


def make_unique(graph: fx.Graph, taken: Iterable[str] = ()) -> None:
    """Number repeated names, in execution order; inputs and constants keep theirs."""
    used = set(taken)
    used.update(node.meta[NAME] for node in graph.nodes if node.op in ("placeholder", "get_attr"))
    for node in graph.nodes:
        if node.op not in ("call_function", "call_module"):
            continue
        if op_name(node) == "getitem" or (DTYPE not in node.meta and "val" not in node.meta):
            continue
        node.meta[NAME] = take_name(node.meta.get(NAME) or op_name(node) or node.name, used, "#")
