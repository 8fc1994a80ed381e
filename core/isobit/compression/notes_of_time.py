"""What a report says of the time of a smaller network, where that falls by less than what was asked for."""

from __future__ import annotations

from isobit.budget import Cost
from isobit.graph.graph import Graph
from isobit.targets.costs import Costs

#: How much larger the share of the time must be than that of the multiply-accumulates before that is told.
_MUCH_MORE_TIME = 0.1


def notes_of_time(
    unit: str, kept: float, costs: tuple[Cost, Cost], graphs: tuple[Graph, Graph], table: Costs | None
) -> list[str]:
    """Notes on a network before and after, of which the share `kept` of a unit is left, by a target's table."""
    if table is None:
        return []
    notes = []
    before, after = costs
    share = after.milliseconds / before.milliseconds if before.milliseconds > 0 else 0.0
    if unit == "macs" and share >= kept + _MUCH_MORE_TIME:
        notes.append(
            f"{kept:.0%} of the multiply-accumulates take {share:.0%} of the time, by the figures of {table.processor} "
            "in float: layers of few channels spend theirs on what they read and write; cost='milliseconds' chooses by "
            "time"
        )
    block = table.channel_block
    more = _outside_blocks(graphs[1], block) - _outside_blocks(graphs[0], block)
    if more > 0:
        notes.append(
            f"convolutions whose channels are no multiple of {block}: {more} more than before. They are slower than "
            f"those that fill blocks of {block} ({table.processor}): multiple={block} may take less time"
        )
    return notes


def _outside_blocks(graph: Graph, block: int) -> int:
    """How many convolutions make channels that do not fill blocks."""
    return sum(
        node.op == "Conv"
        and (weight := graph.weights.get(node.input(1) or "")) is not None
        and weight.shape[0] % block > 0
        for node in graph.nodes
    )
