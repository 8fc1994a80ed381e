"""Which nodes the target runs as one: chains matched from its fusion patterns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from isobit.graph.graph import Graph, Node
from isobit.targets.target import FusionStep, Target


@dataclass(frozen=True, eq=False)
class Chain:
    """Nodes that run as one; the tensors between them never exist outside the kernel."""

    nodes: tuple[Node, ...]

    @property
    def inner(self) -> tuple[str, ...]:
        """The tensors between the nodes."""
        return tuple(node.outputs[0] for node in self.nodes[:-1])


def find_chains(
    graph: Graph, target: Target, starts: frozenset[str], excluded: frozenset[str] = frozenset()
) -> list[Chain]:
    """The longest chain from each node in `starts`, in execution order.

    No node is in two chains, and none of `apart` in any.
    """
    in_chains: set[str] = set()
    chains = []
    for node in graph.nodes:
        if node.name in in_chains or node.name not in starts:
            continue
        matches = (_match(graph, node, pattern, excluded) for pattern in target.fusions)
        best = max((match for match in matches if match), key=len, default=None)
        if best is not None and not any(member.name in in_chains for member in best):
            in_chains.update(member.name for member in best)
            chains.append(Chain(best))
    return chains


def _match(
    graph: Graph, node: Node, pattern: Sequence[FusionStep], excluded: frozenset[str]
) -> tuple[Node, ...] | None:
    if node.op not in pattern[0].ops:
        return None
    nodes = [node]
    for step in pattern[1:]:
        follower = _follower(graph, nodes[-1])
        if follower is not None and follower.op in step.ops and follower.name not in excluded:
            nodes.append(follower)
        elif not step.optional:
            return None
    return tuple(nodes) if len(nodes) > 1 else None


def _follower(graph: Graph, node: Node) -> Node | None:
    use = graph.sole_reader(node.outputs[0])
    return use.node if use is not None and use.index == 0 else None
