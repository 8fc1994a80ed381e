"""Where constants are quantized: weights, biases, and the other operands of operations that run quantized."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from isobit.encodings.quant_spec import Lpbq, PerBlock, PerChannel, PerTensor, QuantSpec
from isobit.encodings.ranges import too_small
from isobit.errors import FormatError
from isobit.graph.graph import Graph, Node, Use, WeightInfo
from isobit.graph.ops import BODIES, BODY_WEIGHTS, Operand, operand
from isobit.graph.sites import Input, Site, Tensor, Weight
from isobit.placement.plan import Placement
from isobit.placement.quant_config import QuantConfig
from isobit.placement.signal_tensors import signal_tensors
from isobit.targets.target import Target

#: Operations that read a constant as they read an activation: it has no channels of its own, and is no weight.
_CONSTANT_READERS = ("Add", "Sub", "Mul", "Div", "MatMul", "Concat", "Max", "Min", "Gemm")


class ConstantPlacer:
    """Places the constants of a graph whose quantized nodes are known.

    `wide` are layers whose weights need 16 bits. `placements` and `floats` are what was decided, in the order of the
    constants.
    """

    def __init__(
        self, graph: Graph, target: Target, config: QuantConfig, quantized: Collection[str], wide: Collection[str] = ()
    ) -> None:
        self.wide = wide
        self.graph = graph
        self.target = target
        self.config = config
        self.quantized = quantized
        self.placements: dict[Site, Placement] = {}
        self.floats: dict[str, str] = {}

    def place_operands(self) -> None:
        """Weights and other constants; biases wait for the placements that their scales follow from."""
        for name in self.graph.weights:
            self._place_operand(name)

    def _place_operand(self, name: str) -> None:
        info = self.graph.weights[name]
        uses = [use for use in self.graph.uses(name) if not _is_bias(use)]
        if info.dtype != "float32" or not uses:
            return
        by_use = {use: self._operand_placement(name, use) for use in uses}
        quantized = [placement for placement in by_use.values() if placement is not None]
        formats = {(p.spec, p.kind, p.channel_axis, p.block_axis) for p in quantized}
        if len(quantized) == len(self.graph.uses(name)) and len(formats) == 1:
            self.placements[Weight(name)] = quantized[0]
            return
        for use, placement in by_use.items():
            if placement is not None:
                site = Input(use.node.name, use.index)
                self.placements[site] = replace(placement, site=site)
        if not quantized:
            self.floats[name] = self._float_reason(name, uses[0])

    def _operand_placement(self, name: str, use: Use) -> Placement | None:
        node, shape = use.node, self.graph.weights[name].shape
        described = operand(node.op, use.index)
        if BODY_WEIGHTS in node.attributes:
            return self._stored_for_body(name, use)
        if node.name not in self.quantized and not self._is_stored(node, described):
            return None
        if described is not None and described.role not in ("weight", "recurrent_weight"):
            return None
        if described is None and node.op not in _CONSTANT_READERS:
            return None
        overridden, override_format = self.config.override(name)
        if overridden and override_format is None:
            return None
        if described is None:
            if not overridden and self._too_small(name, use):
                return None
            spec = self.target.activation_format(override_format if overridden else self.config.activations)
            spec = spec.with_granularity(PerTensor())
            if not overridden and node.name in self.wide:
                spec = in_16_bits(spec, self.target.activation_types)
            return Placement(Weight(name), spec, "constant")
        spec = self.target.weight_format(override_format if overridden else self.config.weights, node.op)
        rank = len(shape)
        channel, block = (
            axis % rank if axis is not None else None for axis in (described.channel_axis, described.block_axis)
        )
        if not overridden:
            if self._too_small(name, use):
                return None
            spec = _fitting(spec, shape, block)
            if node.name in self.wide:
                spec = in_16_bits(spec, self.target.weight_types)
        return Placement(Weight(name), spec, "weight", channel_axis=channel or 0, block_axis=block)

    def _stored_for_body(self, name: str, use: Use) -> Placement | None:
        """A weight that a layer in a body reads: kept as integers, which the layer reads as floats.

        One that has other readers too stays in float: only the whole constant can be exchanged for a body.
        """
        found = in_body(use)
        if found is None:
            return None
        op, channel, block = found
        is_kept = self.target.quantizes(op) or op in self.target.weights_only
        overridden, override_format = self.config.override(name)
        if not is_kept or self.config.excludes(use.node) or (overridden and override_format is None):
            return None
        if len(self.graph.uses(name)) > 1 or len(self.graph.views(name)) > 1:
            return None
        spec = self.target.weight_format(override_format if overridden else self.config.weights, op)
        if channel is None:
            spec = spec.with_granularity(PerTensor())
        elif not overridden:
            spec = _fitting(spec, self.graph.weights[name].shape, block)
        if not overridden and self._too_small(name, use):
            return None
        return Placement(Weight(name), spec, "weight", channel_axis=channel or 0, block_axis=block)

    def _is_stored(self, node: Node, described: Operand | None) -> bool:
        """Whether the target keeps the weights of a layer as integers though it runs in float."""
        return described is not None and node.op in self.target.weights_only and not self.config.excludes(node)

    def _float_reason(self, name: str, use: Use) -> str:
        if self.config.override(name)[0]:
            return "float by your override"
        if use.node.op in BODIES:
            return self._too_small(name, use) or why_float_in_body(self.graph, name, use)
        described = operand(use.node.op, use.index)
        if use.node.name not in self.quantized and not self._is_stored(use.node, described):
            is_weight = described is not None and described.role == "weight" and not self.config.excludes(use.node)
            is_looked_up = use.node.op == "Gather"  # by indices, which are never the signal
            if is_weight and not is_looked_up and signal_tensors(self.graph).isdisjoint(use.node.inputs):
                return f"{use.node.op} {use.node.name} reads positions, masks or shapes alone, which stay in float"
            return f"{use.node.op} {use.node.name} stays in float"
        return self._too_small(name, use) or f"{use.role} of {use.node.op} stays in float"

    def _too_small(self, name: str, use: Use) -> str:
        """Why a constant that is to be integers has values below all scales; empty where it has not."""
        op, target, config = use.node.op, self.target, self.config
        described, inside = operand(op, use.index), in_body(use)
        if inside is not None:
            spec = target.weight_format(config.weights, inside[0])
        elif described is not None and described.role in ("weight", "recurrent_weight"):
            spec = target.weight_format(config.weights, op)
        elif described is None and op in _CONSTANT_READERS:
            spec = target.activation_format(config.activations)
        else:
            return ""
        return too_small(self.graph.weights[name].magnitude or 0.0, spec)

    def place_biases(self, placements: Mapping[Site, Placement]) -> None:
        """int32 biases of weighted nodes whose input and weight are integers; their scale is the product.

        `placements` are those of the whole plan, in which inputs and weights are looked up.
        """
        if not self.target.int32_bias:
            return
        spec = QuantSpec.parse("int32")
        for name, info in self.graph.weights.items():
            uses = [use for use in self.graph.uses(name) if _is_bias(use)]
            sources = {use: _scale_sources(use.node, placements) for use in uses}
            if info.dtype != "float32" or not uses:
                continue
            overridden, override_format = self.config.override(name)
            if overridden and override_format is None:
                self.floats[name] = "float by your override"
                continue
            # A pattern such as "classifier.*" may mean the weight; a format for the bias alone is a mistake.
            named_alone = name in (self.config.overrides or {})
            if overridden and named_alone and QuantSpec.parse(override_format or "").type_name != "int32":
                raise FormatError(f"override of bias {name!r}: a bias is int32 or float (None), not {override_format}")
            shared = len(set(sources.values())) == 1 and len(uses) == len(self.graph.uses(name))
            for use, scale_of in sources.items():
                if scale_of is None:
                    self.floats.setdefault(name, f"the input or weight of {use.node.name} is no integer")
                    continue
                site: Site = Weight(name) if shared else Input(use.node.name, use.index)
                weight_granularity = placements[scale_of[1]].spec.granularity
                granularity = PerTensor() if isinstance(weight_granularity, PerTensor) else PerChannel()
                self.placements[site] = Placement(site, spec.with_granularity(granularity), "bias", scale_of=scale_of)


def is_matrix(info: WeightInfo) -> bool:
    """Whether a constant has floats along several axes; the state that a loop begins with is mostly a row."""
    return info.is_float and sum(size > 1 for size in info.shape) > 1


def in_body(use: Use) -> tuple[str, int | None, int | None] | None:
    """The layer in a body whose weight a constant is, with the axes of channels and blocks, or None."""
    entries = use.node.attributes.get(BODY_WEIGHTS, ())
    return next(((op, channel, block) for index, op, channel, block in entries if index == use.index), None)


def why_float_in_body(graph: Graph, name: str, use: Use) -> str:
    """Why a constant that the body of an If, a Loop or a Scan reads is no integer."""
    where = f"in a body of {use.node.op} {use.node.name!r}"
    if in_body(use) is not None and (len(graph.uses(name)) > 1 or len(graph.views(name)) > 1):
        return f"it is read {where} and elsewhere too: give the body a copy of its own"
    return f"it is {where}, whose operations stay in float"


def in_16_bits(spec: QuantSpec, allowed: Collection[str]) -> QuantSpec:
    """A format with 16 bits, where it has fewer and the target runs it."""
    if not spec.is_integer or spec.bits >= 16 or isinstance(spec.granularity, PerBlock | Lpbq):
        return spec
    wide = replace(spec, bits=16)
    return wide if wide.type_name in allowed else spec


def _is_bias(use: Use) -> bool:
    described = operand(use.node.op, use.index)
    return described is not None and described.role == "bias"


def _scale_sources(node: Node, placements: Mapping[Site, Placement]) -> tuple[Site, Site] | None:
    """The sites of a weighted node's input and weight, when a bias scale can be their product."""
    sources = []
    for index in (0, 1):
        name = node.input(index)
        sites: Iterable[Site] = (Input(node.name, index), Tensor(name or ""), Weight(name or ""))
        site = next((s for s in sites if s in placements), None)
        if site is None or not placements[site].spec.is_integer:
            return None
        if index == 0 and isinstance(placements[site].spec.granularity, PerChannel):
            return None  # the products of one output have several scales
        sources.append(site)
    if isinstance(placements[sources[1]].spec.granularity, PerBlock | Lpbq):
        return None  # an accumulator over several blocks has no single scale
    return sources[0], sources[1]


def _fitting(spec: QuantSpec, shape: tuple[int, ...], block_axis: int | None) -> QuantSpec:
    """A model-wide block format is per-channel on a weight that its blocks do not divide (a stem with 3 inputs)."""
    if isinstance(spec.granularity, PerBlock | Lpbq) and (
        block_axis is None or shape[block_axis] % spec.granularity.size
    ):
        return spec.with_granularity(PerChannel())
    return spec
