"""Placement: (graph, target, what the user asks for) -> Plan. Decided here once, for every framework.

A float tensor is quantized when an operation that the target runs quantized computes or reads it, unless it lies inside
a fused chain. Where it exists in float too (an input, the result of an operation in float, or one that the target can
leave in float), operations in float read that. Operations that only move values (Reshape, MaxPool) pass the encoding of
their input on.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from isobit.edits.edit import Removed
from isobit.encodings.quant_spec import PerChannel, PerTensor, QuantSpec
from isobit.errors import FormatError
from isobit.graph.adapters import find_adapters
from isobit.graph.graph import Graph, Node, Use
from isobit.graph.ops import BROADCAST, RECURRENT, UNARY, VALUE_PRESERVING, WEIGHTED
from isobit.graph.sites import Input, Site, Tensor, site_key
from isobit.placement.channel_factors import channel_factors
from isobit.placement.constants import ConstantPlacer, in_16_bits
from isobit.placement.exact_tensors import exact_tensors
from isobit.placement.fused_chains import Chain, find_chains
from isobit.placement.gain.time_gain import TimeGain, note_of_thin
from isobit.placement.inner_overrides import settle_inner_overrides
from isobit.placement.masked_tensors import has_mask_constant, masked_scores, masked_tensors
from isobit.placement.plan import WITHOUT_GAIN, Placement, Plan, inside_chain
from isobit.placement.quant_config import QuantConfig
from isobit.placement.signal_tensors import signal_tensors
from isobit.targets.target import Target

logger = logging.getLogger(__name__)


def place(
    graph: Graph,
    target: Target,
    config: QuantConfig | None = None,
    apart: Mapping[str, str] = MappingProxyType({}),
    removed: Sequence[Removed] = (),
) -> Plan:
    """The plan of `graph` on `target`. `removed` are nodes that were there and that `config` may name.

    `apart` are tensors that the data forbids a grid, with the reason: they stay in float, and so does all that shares
    an encoding with them; what such a Concat joins keeps grids of its own. Raises FormatError for a format that the
    target cannot run, or a pattern that matches nothing.
    """
    wishes = config or QuantConfig()
    wishes.check(graph, removed)
    plan = _Placer(graph, target, wishes.carried(removed, graph) if removed else wishes, apart).plan()
    if logger.isEnabledFor(logging.INFO):
        kinds = Counter(placement.kind for placement in plan.placements.values())
        numbers = ", ".join(f"{number} of kind {kind}" for kind, number in kinds.items()) or "no sites"
        logger.info("placed on target %s: %s; %d in float", target.name, numbers, len(plan.floats))
    for name, reason in plan.floats.items():
        logger.debug("%s stays in float: %s", name, reason)
    return plan


class _Placer:
    def __init__(self, graph: Graph, target: Target, config: QuantConfig, apart: Mapping[str, str]) -> None:
        self.graph = graph
        self.apart = apart
        self.target = target
        self.config = config
        self.activation_spec = target.activation_format(config.activations)
        self.floats: dict[str, str] = {}
        self.placements: dict[Site, Placement] = {}
        adapters = find_adapters(graph)
        self.beside = {node.name: adapter.base.name for adapter in adapters for node in adapter.nodes}
        weights = {
            layer.name: weight
            for adapter in adapters
            for layer, weight in zip(adapter.layers, adapter.weights, strict=True)
        }
        self.own_formats = {layer for layer, weight in weights.items() if config.override(weight)[1] is not None}
        whole = [adapter for adapter in adapters if self.own_formats.isdisjoint(node.name for node in adapter.layers)]
        self.beside_in_float = len({adapter.base.name for adapter in whole})
        self.signal = signal_tensors(graph)
        self.masked, self.masking = masked_tensors(graph, self.signal), masked_scores(graph)
        self.exact = exact_tensors(graph, self.signal, lambda name: config.override(name)[0])
        self.quantized = {node.name: node for node in graph.nodes if self._runs_quantized(node)}
        excluded = frozenset(node.name for node in graph.nodes if self.config.excludes(node))
        chains = self._chains(excluded)
        gain = TimeGain(graph, target, config, self._is_tie)
        self.thin = gain.thin(self.quantized, chains)
        chains = self._leave(self.thin, chains, excluded)
        self.without_gain = gain.without_gain(self.quantized, chains)
        chains = self._leave(self.without_gain, chains, excluded)
        self.without_gain |= self.thin
        self.config = settle_inner_overrides(config, chains, self.inner, target.name)
        self.inner.update({tensor: chain.nodes[-1] for chain in chains for tensor in chain.inner})
        for chain in chains:
            self.quantized.update({node.name: node for node in chain.nodes})

    def plan(self) -> Plan:
        groups = self._tie_groups()
        needed = self._needed()
        self.awaited = self._awaited()
        for group, members in groups.items():
            if any(name in needed for name in members):
                self._place_group(group, members)
        for name in self._float_tensors():
            if Tensor(name) not in self.placements:
                self.floats.setdefault(name, self._reason(name))
        for name, info in self.graph.tensors.items():
            if self.graph.is_float(name) and not self._is_float(name):
                self.floats[name] = f"it is {info.dtype}: only float32 is quantized, so convert the model to float32"
        # An adapter's weights may have a format, and its tensors none; so have thin convolutions.
        readers = {*self.quantized, *self.own_formats, *self.thin}
        constants = ConstantPlacer(self.graph, self.target, self.config, readers, self.exact.wide_weights)
        constants.place_operands()
        self.placements.update(constants.placements)
        self._place_single_inputs()
        constants.place_biases(self.placements)
        self.placements.update(constants.placements)
        self.floats.update(constants.floats)
        order = {name: index for index, name in enumerate([*self.graph.inputs, *self.graph.tensors])}
        sites = sorted(self.placements, key=lambda site: (order.get(str(site), len(order)), site_key(site)))
        return Plan({site: self.placements[site] for site in sites}, self.floats, self._notes())

    # --- which nodes -----------------------------------------------------------------------------------------------

    def _chains(self, excluded: frozenset[str]) -> list[Chain]:
        """The fused chains; a Mul that runs with the curve beside it is no operation of its own any more."""
        candidates = channel_factors(self.graph, self.quantized, excluded)
        starts = frozenset(self.quantized) - candidates.nodes
        if candidates.nodes:  # a curve that a layer takes along is not free to take factors
            chains = find_chains(self.graph, self.target, starts, excluded)
            taken = excluded | {node.name for chain in chains for node in chain.nodes[1:]}
            candidates = channel_factors(self.graph, self.quantized, taken)
        self.inner = dict(candidates.inner)
        self.quantized = {name: node for name, node in self.quantized.items() if name not in candidates.nodes}
        return find_chains(self.graph, self.target, frozenset(self.quantized), excluded)

    def _leave(self, names: frozenset[str], chains: list[Chain], excluded: frozenset[str]) -> list[Chain]:
        """The chains once nodes are left in float."""
        if not names:
            return chains
        self.quantized = {name: node for name, node in self.quantized.items() if name not in names}
        return self._chains(excluded)

    def _runs_quantized(self, node: Node) -> bool:
        if self._is_tie(node) or not self.target.quantizes(node.op) or self.config.excludes(node) or self._joins(node):
            return False
        if node.name in self.beside or node.name in self.masking or self._is_exact(node):
            return False
        data = [name for name in node.inputs if name in self.graph.tensors and name is not None]
        if node.op == "Gather":  # its data is a constant table, read by indices
            return node.input(0) in self.graph.weights and self.graph.is_float(node.inputs[0] or "")
        if node.op in RECURRENT:  # lengths are no signal, and states may be learned
            data = [name for name in node.inputs[:1] if name in data]
        floats = [name for name in data if self._is_float(name)]
        return bool(floats) and all(name in self.signal for name in data) and not has_mask_constant(self.graph, node)

    def _is_tie(self, node: Node) -> bool:
        if node.op not in self.target.same_encoding and node.op not in self.target.joint_encoding:
            return False
        if node.op == "Resize" and node.attributes.get("mode", "nearest") not in ("nearest", b"nearest"):
            return False
        if node.op == "Pad" and (node.input(2) is not None or node.attributes.get("value", 0) not in (0, 0.0, (0.0,))):
            return False
        if any(tensor in self.masked for tensor in node.outputs):
            return False
        if self.config.excludes(node) or self._joins(node) or self._is_exact(node):
            return False
        return node.input(0) in self.graph.tensors

    def _joins(self, node: Node) -> bool:
        """Whether a node puts tensors side by side that one grid does not fit."""
        return node.op == "Concat" and node.outputs[0] in self.apart

    def _is_exact(self, node: Node) -> bool:
        """Whether a node computes or reads exact tensors alone, or moves one; a layer keeps its integers."""
        if node.op in WEIGHTED | RECURRENT or (node.op == "Gather" and node.inputs[0] in self.graph.weights):
            return False
        if node.op in VALUE_PRESERVING and node.op != "Concat" and node.inputs[0] in self.exact.reasons:
            return True
        operands = [name for name in node.inputs if name in self.signal]
        if node.op in UNARY | BROADCAST and operands and all(name in self.exact.reasons for name in operands):
            return True
        results = [name for name in node.outputs if self._is_read(name)]
        return bool(results) and all(name in self.exact.reasons for name in results)

    # --- which tensors ---------------------------------------------------------------------------------------------

    def _is_float(self, name: str) -> bool:
        return self.graph.tensors[name].dtype == "float32"

    def _float_tensors(self) -> list[str]:
        tensors = dict.fromkeys([*self.graph.inputs, *(t for node in self.graph.nodes for t in node.outputs)])
        return [name for name in tensors if name in self.graph.tensors and self._is_float(name)]

    def _needed(self) -> set[str]:
        """Float tensors that a quantized operation computes or reads, chains' inner tensors left out."""
        needed: set[str] = set()
        for node in self.quantized.values():
            names = (*node.outputs, *node.inputs)
            needed.update(name for name in names if name in self.graph.tensors and name is not None)
        read = {name for name in needed if self._is_float(name) and self._is_read(name)}
        return read - self.inner.keys() - self.masked

    def _is_read(self, name: str) -> bool:
        """Whether anybody sees the tensor: an LSTM's first output often goes nowhere."""
        return bool(self.graph.uses(name)) or name in self.graph.output_tensors

    def _tie_groups(self) -> dict[str, list[str]]:
        """Tensors that share an encoding, by the first of them in execution order."""
        order = self._float_tensors()
        parent = {name: name for name in order}

        def root(name: str) -> str:
            while parent[name] != name:
                name = parent[name]
            return name

        position = {name: index for index, name in enumerate(order)}
        for node in self.graph.nodes:
            if not self._is_tie(node):
                continue
            joint = node.op in self.target.joint_encoding
            tied = [name for name in (*node.inputs[: None if joint else 1], *node.outputs) if name in parent]
            for name in tied[1:]:
                first, second = sorted((root(tied[0] or ""), root(name or "")), key=position.__getitem__)
                parent[second] = first
        groups: dict[str, list[str]] = {}
        for name in order:
            groups.setdefault(root(name), []).append(name)
        return groups

    def _place_group(self, group: str, members: Sequence[str]) -> None:
        reason = next((self.apart[name] for name in members if name in self.apart), None)
        if reason is not None:
            self.floats.update(dict.fromkeys(members, reason))
            return
        spec = self._group_spec(members)
        if spec is None:
            self.floats.update(dict.fromkeys(members, "float by your override"))
            return
        real = [name for name in members if not self._on_grid(name, members)]
        ranges = {self._fixed_range(name) for name in real}
        fixed = ranges.pop() if len(ranges) == 1 and spec.is_integer and not spec.symmetric else None
        has_channels = self.graph.tensors[members[0]].channel_axis is not None
        if isinstance(spec.granularity, PerChannel) and (len(members) > 1 or fixed or not has_channels):
            spec = spec.with_granularity(PerTensor())  # one encoding for tensors of several shapes, or of no channels
        overridden = any(self.config.override(name)[0] for name in members)
        for name in members:
            if name in self.inner or not self._is_read(name):
                continue
            whole = overridden and name not in self.exact.reasons
            for site in (Tensor(name),) if whole else self._activation_sites(name, members):
                self.placements[site] = Placement(
                    *(site, spec, "activation", name, group, name in real, fixed),
                    range_required=fixed is not None and fixed == self._range_in(self.target.required_ranges, real[0]),
                    channel_axis=self._channel_axis(name),
                )

    def _activation_sites(self, name: str, members: Sequence[str]) -> Iterable[Site]:
        """The tensor for all its readers, or single readers where the others read its float values."""
        quantized = [use for use in self.graph.uses(name) if self._is_awaiting(use)]
        if name in self.exact.reasons:
            return [Input(use.node.name, use.index) for use in quantized]
        if self._on_grid(name, members):
            source = self.graph.producer(name)
            return (Tensor(name),) if source is not None and self._reads_grid(source) else ()
        everyone = len(quantized) == len(self.graph.uses(name)) and name not in self.graph.output_tensors
        if everyone or not self._exists_in_float(name):
            return (Tensor(name),)
        return [Input(use.node.name, use.index) for use in quantized]

    def _exists_in_float(self, name: str) -> bool:
        """Whether the runtime has the values before they are rounded."""
        node = self.graph.producer(name)
        return node is None or node.name not in self.quantized or node.op in self.target.float_results

    def _reads_grid(self, node: Node) -> bool:
        """Whether what a tie reads is on a grid: by a quantizer on its tensor, or on this input alone."""
        indices = range(len(node.inputs)) if node.op == "Concat" else (0,)
        return all({Tensor(node.inputs[i] or ""), Input(node.name, i)} & self.placements.keys() for i in indices)

    def _awaited(self) -> set[str]:
        """Tensors that a quantized operation reads, directly or behind operations that only move values."""
        awaited: set[str] = set()
        for node in reversed(self.graph.nodes):
            if node.name in self.quantized or (self._is_tie(node) and any(t in awaited for t in node.outputs)):
                awaited.update(name for name in node.inputs if name is not None)
        return awaited

    def _is_awaiting(self, use: Use) -> bool:
        node = use.node
        if use in self.exact.uses:
            return False
        return node.name in self.quantized or (self._is_tie(node) and any(t in self.awaited for t in node.outputs))

    def _group_spec(self, members: Sequence[str]) -> QuantSpec | None:
        for name in members:
            overridden, override_format = self.config.override(name)
            if overridden:
                return None if override_format is None else self.target.activation_format(override_format)
        if any(name in self.exact.wide for name in members):
            return in_16_bits(self.activation_spec, self.target.activation_types)
        return self.activation_spec

    def _on_grid(self, name: str, members: Sequence[str]) -> bool:
        """Whether the values of `name` are copies of values of its group that are quantized already."""
        node = self.graph.producer(name)
        if node is None or not self._is_tie(node) or node.op not in VALUE_PRESERVING:
            return False
        sources = node.inputs if node.op == "Concat" else node.inputs[:1]
        return all(source in members for source in sources)

    def _fixed_range(self, name: str) -> tuple[float, float] | None:
        required = self._range_in(self.target.required_ranges, name)
        return self._range_in(self.target.fixed_ranges, name) if required is None else required

    def _range_in(self, ranges: Mapping[str, tuple[float, float]], name: str) -> tuple[float, float] | None:
        node = self.graph.producer(name)
        return ranges.get(node.op) if node is not None else None

    def _channel_axis(self, name: str) -> int:
        return self.graph.tensors[name].channel_axis or 0

    def _reason(self, name: str) -> str:
        if name in self.inner:
            return inside_chain(self.inner[name].name)
        node = self.graph.producer(name)
        if name in self.exact.reasons and (node is None or not self.config.excludes(node)):
            return self.exact.reasons[name]
        alone = [str(site) for site, placement in self.placements.items() if placement.tensor == name]
        if alone:
            return f"rounded for {', '.join(alone)} alone; the others read it in float"
        if node is None:
            return "no operation that the target quantizes reads it"
        if not self._is_read(name):
            return "nothing reads it"
        if self.config.excludes(node):
            return "excluded by you"
        if name in self.masked:
            return f"{node.op} puts a mask on it"
        if name not in self.signal:
            return "computed from shapes, masks or constants alone"
        if node.name in self.beside:
            return f"the adapter beside {self.beside[node.name]} stays in float"
        if not self.target.quantizes(node.op) and not self._is_tie(node):
            return f"target {self.target.name!r} runs {node.op} in float"
        if node.name in self.without_gain:
            return f"{WITHOUT_GAIN}{self.target.name}"
        if self._exists_in_float(name) and name not in self.awaited:
            return f"{node.op} leaves it in float for its readers"
        return f"{node.op} works on tensors that stay in float"

    def _notes(self) -> tuple[str, ...]:
        """What has 16 bits by rule, and why."""
        of_16_bits = {p.tensor for p in self.placements.values() if p.kind == "activation" and p.spec.bits == 16}
        widened = {name: why for name, why in self.exact.wide.items() if name in of_16_bits}
        notes = [
            f"{', '.join(names)}: 16 bits, because {why} behind a layer" for why, names in _by_reason(widened).items()
        ]
        for why, names in _by_reason(self.exact.sized_layers).items():
            shown = ", ".join(names) if len(names) < 4 else f"{names[-1]} to {names[0]}, {len(names)} layers"
            notes.append(f"{shown}: float tensors and weights of 16 bits, because {why}")
        notes += note_of_thin(self.graph, self.thin, self.placements)
        if count := self.beside_in_float:
            what = "adapter beside 1 layer stays" if count == 1 else f"adapters beside {count} layers stay"
            notes.append(
                f"the {what} in float, to be trained and exchanged (docs/lora.md): merge it into the weights beside it "
                "before the model is opened, and nothing of it is left"
            )
        return tuple(notes)

    # --- overrides ----------------------------------------------------------------------------------------------------

    def _place_single_inputs(self) -> None:
        """Overrides of one input of one node, written ``node[1]``."""
        for site, pattern, override_format in self.config.single_inputs(self.graph):
            name = self.graph.node(site.node).input(site.index) or ""
            if name not in self.graph.tensors or not self._is_float(name):
                raise FormatError(f"override {pattern!r}: input {site.index} of {site.node!r} is no float tensor")
            if override_format is None:
                raise FormatError(
                    f"override {pattern!r}: one reader cannot take the float tensor back; override {name!r}"
                )
            spec = self.target.activation_format(override_format)
            if isinstance(spec.granularity, PerChannel):
                raise FormatError(f"override {pattern!r}: one scale a channel is for a tensor, not for a reader of it")
            self.placements[site] = Placement(
                site, spec, "activation", name, str(site), channel_axis=self._channel_axis(name)
            )


def _by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """The names that each reason holds for."""
    names: dict[str, list[str]] = {}
    for name, why in reasons.items():
        names.setdefault(why, []).append(name)
    return names
