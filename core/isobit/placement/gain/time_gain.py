"""Which of the nodes that could run on integers stay in float, by the costs of a target and what the user asks for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from isobit.graph.graph import Graph, Node
from isobit.graph.sites import Site, Weight
from isobit.placement.fused_chains import Chain
from isobit.placement.gain.thin_convolutions import thin_convolutions
from isobit.placement.gain.without_gain import without_gain
from isobit.placement.quant_config import QuantConfig
from isobit.targets.target import Target


class TimeGain:
    """Decides by time. Costs are those of the target's own formats: in others nothing is decided."""

    def __init__(self, graph: Graph, target: Target, config: QuantConfig, is_tie: Callable[[Node], bool]) -> None:
        self._graph, self._target, self._config, self._is_tie = graph, target, config, is_tie
        asked = target.activation_format(config.activations), target.weight_format(config.weights, "Conv")
        own = [target.activations.type_name, target.weights.type_name]
        self._own_activations, self._own_weights = (
            spec.type_name == name for spec, name in zip(asked, own, strict=True)
        )

    def thin(self, quantized: Mapping[str, Node], chains: Sequence[Chain]) -> frozenset[str]:
        """Convolutions that run in float, on weights that are integers for their size."""
        if not (self._own_activations and self._own_weights):
            return frozenset()
        target, asked = self._target, self._asked(quantized, chains)
        return thin_convolutions(
            self._graph, target.convolutions, quantized, chains, asked, self._is_tie, target.float_results
        )

    def without_gain(self, quantized: Mapping[str, Node], chains: Sequence[Chain]) -> frozenset[str]:
        """Other operations that gain nothing where they stand."""
        if not self._own_activations:
            return frozenset()
        asked = self._asked(quantized, chains)
        return without_gain(self._graph, self._target.costs, quantized, chains, asked, self._is_tie)

    def _asked(self, quantized: Mapping[str, Node], chains: Sequence[Chain]) -> set[str]:
        """Nodes that the user gave a format: they run on integers."""
        config, followers = self._config, {node.name: chain.nodes for chain in chains for node in chain.nodes[:1]}
        asked = {site.node for site, _, wanted in config.single_inputs(self._graph) if wanted is not None}
        for node in quantized.values():
            last = followers.get(node.name, (node,))[-1]
            overrides = (config.override(name) for name in (*node.inputs, *node.outputs, *last.outputs) if name)
            if any(is_named and wanted is not None for is_named, wanted in overrides):
                asked.add(node.name)
        return asked


def note_of_thin(graph: Graph, thin: Collection[str], sites: Collection[Site]) -> list[str]:
    """What a plan says of thin convolutions whose weights, among the quantized `sites`, are integers all the same."""
    stored = {str(site) for site in sites if isinstance(site, Weight)}
    names = [n.name for n in graph.nodes if n.name in thin and stored.intersection(filter(None, n.inputs))]
    if not names:
        return []
    others = len(names) - 1
    which = names[0] + (f" and {others} other convolution{'s' * (others > 1)}" if others else "")
    return [
        f"{which}: in float, on weights that are stored as integers, since integers take longer there: they "
        "are thin (docs/targets.md, Thin convolutions); an override gives one its format"
    ]
