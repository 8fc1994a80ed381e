"""Running the neutral graph with any framework's kernels, quantizers where they sit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from isobit.graph.graph import Graph, Node
from isobit.graph.sites import Input, Site, Tensor, Weight
from isobit.statistics.observer import Stage

#: The results of a node, one array or several, from its operands (None: left out), all in canonical layout.
Compute = Callable[[Node, Sequence[Any]], Any]

#: A tensor, or what one reader sees of it, before or after its quantizer.
Tap = tuple[Tensor | Input, Stage]


def run_graph(
    graph: Graph,
    compute: Compute,
    weights: Mapping[str, Any],
    rounders: Mapping[Site, Callable[[Any], Any]],
    feeds: Mapping[str, Any],
    tap: Callable[[Tap, Any], None] | None = None,
    only: Collection[Tap] | None = None,
) -> dict[str, Any]:
    """The outputs by name, for arrays of any framework; each tensor is freed after its last reader.

    What a quantizer rounds is kept only for readers with a quantizer of their own.

    `rounders` put an array on the grid of the quantizer at a site. `tap` is told of every tensor before and after its
    quantizer (the same array where it has none), and of what a reader with a quantizer of its own sees after that.
    With `only`, what these taps do not depend on is not computed, and there are no outputs.
    """
    nodes = graph.nodes if only is None else _leading_to(graph, only)
    leaving = graph.outputs if only is None else {}
    before: dict[str, Any] = {}  # values for readers that have a quantizer of their own
    after: dict[str, Any] = {}
    reads = [(Input(node.name, index), name) for node in nodes for index, name in enumerate(node.inputs)]
    read_before = {name for site, name in reads if site in rounders}
    readers_left = Counter(name for node in nodes for name in node.inputs if name is not None)
    readers_left.update(leaving.values())

    def tell(place: Tap, value: Any) -> None:
        if tap is not None:
            tap(place, value)

    def rounded(site: Site, value: Any) -> Any:
        return rounders[site](value) if site in rounders else value

    def produce(name: str, value: Any) -> None:
        tell((Tensor(name), "before"), value)
        result = rounded(Tensor(name), value)
        tell((Tensor(name), "after"), result)
        if readers_left[name]:  # else it would be kept to the end
            after[name] = result
            if name in read_before:
                before[name] = value

    def operand(site: Input, name: str | None) -> Any:
        if name is None:
            return None
        if name in weights:
            return rounded(site if site in rounders else Weight(name), weights[name])
        if site not in rounders:
            return after[name]
        own = rounded(site, before[name])
        tell((site, "after"), own)
        return own

    for name in graph.inputs:
        produce(name, feeds[name])
    for node in nodes:
        operands = [operand(Input(node.name, index), name) for index, name in enumerate(node.inputs)]
        results = compute(node, operands)
        for output, value in zip(node.outputs, results if isinstance(results, tuple) else (results,), strict=False):
            produce(output, value)
        for read in node.inputs:
            if read in after:
                readers_left[read] -= 1
                if not readers_left[read]:
                    del after[read]
                    before.pop(read, None)
    return {
        name: after[tensor] if tensor in after else rounded(Weight(tensor), weights[tensor])
        for name, tensor in leaving.items()
    }


def _leading_to(graph: Graph, taps: Collection[Tap]) -> list[Node]:
    """The nodes that taps depend on, in order: those before a tensor, and the reader that sees what is its own."""
    readers = {site.node for site, _ in taps if isinstance(site, Input)}
    tensors = {site.name for site, _ in taps if isinstance(site, Tensor)}
    tensors.update(name for node in readers for name in graph.node(node).inputs if name is not None)
    needed = graph.before(tensors) | readers
    return [node for node in graph.nodes if node.name in needed]


def run_tapped(
    graph: Graph,
    compute: Compute,
    weights: Mapping[str, Any],
    rounders: Mapping[Site, Callable[[Any], Any]],
    feeds: Mapping[str, Any],
    taps: Sequence[Tap],
) -> tuple[dict[str, Any], list[Any]]:
    """The outputs by name, or the values at `taps`, in order: what `isobit.graph_backend.Engine.run` returns.

    With taps, what they do not depend on is not computed, and there are no outputs.
    """
    tapped: dict[Tap, Any] = {}

    def tap(place: Tap, value: Any) -> None:
        if place in taps:
            tapped[place] = value

    outputs = run_graph(graph, compute, weights, rounders, feeds, tap, taps or None)
    return outputs, [tapped[place] for place in taps]
