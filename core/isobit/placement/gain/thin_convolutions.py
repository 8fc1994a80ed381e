"""Which convolutions stay in float because they are thin: integers, and the conversions around them, take longer.

A kernel of integers gathers what it reads, tap by tap, and hands it on in another layout than float kernels do; with
few channels, or one kernel a channel, that takes longer than the products. A curve behind a convolution (HardSwish) is
computed along with it in float, and by kernels of its own between integers. What is best for one layer depends on its
neighbours, since each change between float and integers costs a conversion: all of them are decided at once. A float
convolution never reads what a kernel of integers hands on without a curve between: runtimes would take it for one whose
weights were forgotten, and quantize them by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from isobit.graph.graph import Graph, Node
from isobit.graph.multiply_adds import multiply_adds
from isobit.graph.ops import RECURRENT, WEIGHTED
from isobit.placement.fused_chains import Chain
from isobit.placement.gain.cheapest_cut import CheapestCut
from isobit.placement.gain.convolution_time import Convolution
from isobit.placement.gain.tensor_sizes import TensorSizes
from isobit.targets.convolution_costs import ConvolutionCosts

#: Nothing is changed for less than this, in nanoseconds of a sample and as a share of the time: what a table of costs
#: tells of small networks is not what they take.
_LEAST_NANOSECONDS = 50_000
_LEAST_SHARE = 0.05

#: A network keeps this share of its multiply-adds on integers, as it was asked for, and is told that they do not pay.
_INTEGER_SHARE = 0.5

#: What a multiply-add on integers counts for, in time of one in float, until they keep their share.
_BONUSES = (0.0, *(0.02 * 1.5**step for step in range(16)))


def thin_convolutions(
    graph: Graph,
    costs: Sequence[ConvolutionCosts],
    quantized: Mapping[str, Node],
    chains: Sequence[Chain],
    asked: Collection[str],
    is_tie: Callable[[Node], bool],
    float_results: Collection[str],
) -> frozenset[str]:
    """The names of `quantized` convolutions that run in float; those `asked` for run on integers in any case.

    Of several tables of costs a convolution must be thin by each.
    """
    if not costs or all(node.op != "Conv" for node in quantized.values()):
        return frozenset()
    divisions = (_Division(graph, table, quantized, chains, asked, is_tie, float_results) for table in costs)
    return frozenset.intersection(*(division.thin() for division in divisions))


class _Division:
    """The two sides of a graph by one table of costs."""

    def __init__(
        self,
        graph: Graph,
        costs: ConvolutionCosts,
        quantized: Mapping[str, Node],
        chains: Sequence[Chain],
        asked: Collection[str],
        is_tie: Callable[[Node], bool],
        float_results: Collection[str],
    ) -> None:
        self._graph, self._costs = graph, costs
        self._sizes = TensorSizes(graph)
        self._float_results = float_results
        #: The first node of a chain stands for all of it.
        self._last = {node.name: node for node in graph.nodes}
        self._last.update({chain.nodes[0].name: chain.nodes[-1] for chain in chains})
        self._inner = {node.name for chain in chains for node in chain.nodes[1:]}
        self._integer = {node.name for node in graph.nodes if node.name in quantized or is_tie(node)} - self._inner
        self._fixed = {name for name, node in quantized.items() if name in asked or node.op in WEIGHTED | RECURRENT}
        found = {node.name: Convolution.of(graph, node, self._sizes) for node in graph.nodes}
        self._convolutions = {name: layer for name, layer in found.items() if layer is not None}
        free = quantized.keys() - self._inner - set(asked)
        self._layers = {n: layer for n, layer in self._convolutions.items() if n in free and not layer.reads_weights}
        self._fixed -= self._layers.keys()
        self._curves = {curve.name: name for name in self._layers if (curve := self._curve(name)) is not None}

    def thin(self) -> frozenset[str]:
        """The names of the convolutions that are in float in the cheapest division."""
        macs = {node.name: float(multiply_adds(self._graph, node, of_one=True) or 0) for node in self._graph.nodes}
        macs.update({name: layer.multiply_adds for name, layer in self._convolutions.items()})
        free = self._cut(0.0)
        for name in self._layers:
            free.forbid(CheapestCut.INTEGERS, name)
        asked = free.cost(free.integers())
        for bonus in _BONUSES:
            sides = self._cut(bonus * self._costs.multiply).integers()
            kept = sum(count for name, count in macs.items() if name in sides)
            if kept >= _INTEGER_SHARE * sum(macs.values()):
                gain = asked - free.cost(sides)
                is_enough = gain >= max(_LEAST_NANOSECONDS, _LEAST_SHARE * asked)
                return frozenset(name for name in self._layers if name not in sides) if is_enough else frozenset()
        return frozenset()

    def _curve(self, name: str) -> Node | None:
        """What a float kernel computes along with a convolution, and runs in float anyway."""
        use = self._graph.sole_reader(self._last[name].outputs[0])
        if use is None or use.node.op not in self._costs.curves or use.node.name in self._integer:
            return None
        return use.node

    def _cut(self, bonus: float) -> CheapestCut:
        cut = CheapestCut()
        for node in self._graph.nodes:
            if node.name not in self._inner:
                self._add_node(cut, node, bonus)
        for name in self._graph.inputs:
            self._add_given(cut, name, None)
        for node in self._graph.nodes:
            if node.name in self._inner:
                continue
            for name in self._last[node.name].outputs:
                if node.name in self._integer:
                    self._add_result(cut, node, name)
                else:
                    self._add_given(cut, name, node)
        return cut

    def _add_node(self, cut: CheapestCut, node: Node, bonus: float) -> None:
        """What a node takes on either side."""
        costs, name = self._costs, node.name
        layer = self._layers.get(name)
        if name not in self._integer:
            cut.forbid(name, CheapestCut.FLOAT)
        elif layer is not None:
            cut.add(CheapestCut.INTEGERS, name, layer.in_float(costs) + bonus * layer.multiply_adds)
            cut.add(name, CheapestCut.FLOAT, layer.in_integers(costs))
        elif name in self._fixed:
            cut.forbid(CheapestCut.INTEGERS, name)
            macs = multiply_adds(self._graph, node, of_one=True) or 0
            cut.add(name, CheapestCut.FLOAT, macs * costs.integer_multiply)

    def _add_result(self, cut: CheapestCut, node: Node, tensor: str) -> None:
        """Conversions of what a node computes on integers or in float."""
        costs, name, elements = self._costs, node.name, self._elements(tensor)
        moved = elements * costs.reorder + costs.node if name in self._layers else 0.0
        from_integers = 0.0 if node.op in self._float_results else elements * costs.dequantize + costs.node
        readers = self._readers(tensor)
        if any(reader in self._curves for reader in readers):
            use = self._graph.uses(tensor)[0]
            cut.add(name, CheapestCut.FLOAT, from_integers + elements * costs.curves[use.node.op])
            return
        wide = ("integers of", tensor)
        cut.add(wide, name, elements * costs.quantize + costs.node + moved)
        floats = ("floats of", tensor)
        cut.add(name, floats, from_integers)
        for reader in readers:
            if reader in self._integer:
                cut.forbid(reader, wide)
            cut.forbid(floats, reader)
            if reader in self._layers:
                cut.forbid(name, reader)
        if tensor in self._graph.output_tensors or any(reader not in self._integer for reader in readers):
            cut.forbid(floats, CheapestCut.FLOAT)
            cut.add(CheapestCut.INTEGERS, name, moved)

    def _add_given(self, cut: CheapestCut, tensor: str, node: Node | None) -> None:
        """Conversions of an input, or of what a node computes in float in any case."""
        costs, elements = self._costs, self._elements(tensor)
        layer = self._curves.get(node.name) if node is not None else None
        moved = elements * costs.reorder + costs.node
        wide = ("integers of", tensor)
        cut.add(wide, CheapestCut.FLOAT, elements * costs.quantize + costs.node)
        if layer is not None:
            cut.add(wide, layer, moved)
        readers = self._readers(tensor)
        if layer is not None and (tensor in self._graph.output_tensors or not self._integer.issuperset(readers)):
            cut.add(CheapestCut.INTEGERS, layer, moved)
        for reader in readers:
            if reader in self._integer:
                cut.forbid(reader, wide)
            if reader in self._layers and layer is not None:
                cut.add(layer, reader, moved)
            elif reader in self._layers and not (node is None and self._layers[reader].inputs < costs.channel_block):
                cut.add(CheapestCut.INTEGERS, reader, moved)

    def _readers(self, tensor: str) -> list[str]:
        return list(dict.fromkeys(use.node.name for use in self._graph.uses(tensor)))

    def _elements(self, name: str | None) -> float:
        return (name in self._graph.tensors and self._sizes.elements(name or "")) or 0.0
