"""``torch.cond`` as what a graph of fixed operations can hold: both branches are computed, and one result is chosen.

The branches of ``torch.cond`` are functions without side effects, so the results are the same.
"""

from __future__ import annotations

from typing import Any

from torch import fx
from torch.export import ExportedProgram

from isobit_torch.program.fx_nodes import aten, op_name


def inline_branches(program: ExportedProgram) -> tuple[str, ...]:
    """Write the branches of a program into its graph, in place; returns a note where there were any."""
    if not _inline(program.graph_module):
        return ()
    return ("both branches of torch.cond are computed, and one is chosen",)


def _inline(module: fx.GraphModule) -> int:
    graph, count = module.graph, 0
    for node in list(graph.nodes):
        if node.op != "call_function" or getattr(node.target, "__name__", "") != "cond":
            continue
        condition, *branches, operands = node.args
        if not isinstance(condition, fx.Node):
            continue
        count += 1
        results: list[list[Any]] = []
        for branch in branches:
            part = getattr(module, branch.target)
            _inline(part)
            with graph.inserting_before(node):
                results.append(_copied(part.graph, graph, operands))
        for reader in list(node.users):
            if op_name(reader) == "getitem":
                first, second = (values[reader.args[1]] for values in results)
                reader.target, reader.args = aten.where.self, (condition, first, second)  # by the name it has
        graph.erase_node(node)
    for node in list(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    return count


def _copied(branch: fx.Graph, graph: fx.Graph, operands: Any) -> list[Any]:
    """The nodes of a branch over these operands, and its results."""
    env: dict[fx.Node, Any] = {}
    given = iter(operands)
    for node in branch.nodes:
        if node.op == "placeholder":
            env[node] = next(given)
        elif node.op == "output":
            results: Any = fx.node.map_arg(node.args[0], lambda n: env[n])
            return list(results) if isinstance(results, list | tuple) else [results]
        else:
            env[node] = graph.node_copy(node, lambda n: env[n])
    raise AssertionError("a graph ends with its output")
