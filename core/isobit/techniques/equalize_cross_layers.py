"""Cross-layer equalization: factors move between the channels of neighbouring layers, and the function stays.

Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, sections 4.1
and 4.1.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from isobit.edits.draft import Draft
from isobit.edits.edit import NewNode, Replace, SetWeights
from isobit.errors import FormatError
from isobit.graph.graph import Graph, Node
from isobit.graph.sites import Tensor
from isobit.statistics.moments import Moments
from isobit.statistics.observer import Request
from isobit.techniques.context import Requests, TechniqueContext
from isobit.techniques.layers.layer_pairs import Pair, find_pairs
from isobit.techniques.layers.normal import NormalPerChannel
from isobit.techniques.layers.weighted_layer import (
    Floats,
    bias_of,
    by_input,
    by_output,
    channel_axis,
    groups_of,
    input_ranges,
    response,
    set_bias,
)
from isobit.techniques.technique import TechniqueReport

#: A channel whose range is this much smaller than the largest of its layer counts as empty, and gets no factor.
_EMPTY = 1e-8

#: c = mean - 3 deviations: 99.87 % of the values lie above it.
_DEVIATIONS = 3.0

#: A channel is expected to reach this many deviations from its mean, as in section 5 of the paper.
_REACH = 6.0

#: Absorbing has to make the range of the tensor smaller by this share. With less, only the rounding errors change.
_GAIN = 0.01

_CONVERGED = 1e-4


@dataclass(frozen=True)
class EqualizeCrossLayers:
    """Give both sides of each channel between two layers the same weight range, then move high biases on.

    Pairs of Conv (depthwise and grouped too), ConvTranspose and Linear with nothing, Relu, PRelu, LeakyRelu or pooling
    between them. With ranges r1 and r2 of a channel in the first and the second layer, ``s = sqrt(r1 * r2) / r2``
    divides the first and multiplies the second; swept over all pairs until no factor changes by more than 1e-4, at
    most `sweeps` times. `clip` says what becomes of ``Clip(0, b)``, ReLU6 above all: ``"keep"`` leaves such pairs
    alone, ``"per-channel"`` clips each channel at ``b / s``, ``"relu"`` drops the upper bound, which changes the
    function. High biases, at most ``c = max(0, mean - 3 * deviation)``, are absorbed by the next layer, where that does
    not pad and the tensor's range gets smaller, by no more than this takes: what lies below c is lost. Means and
    deviations are from moments of the data, one pass, or without data from the batch norms that were folded.
    """

    absorb_biases: bool = True
    clip: Literal["keep", "per-channel", "relu"] = "keep"
    sweeps: int = 50

    def __post_init__(self) -> None:
        if self.clip not in ("keep", "per-channel", "relu"):
            raise FormatError(f"clip is 'keep', 'per-channel' or 'relu', not {self.clip!r}")
        if self.sweeps < 1:
            raise FormatError(f"at least one sweep, not {self.sweeps}")

    @property
    def uses_data(self) -> bool:
        """Whether biases are absorbed, by the moments of the data where there is some."""
        return self.absorb_biases

    def requests(self, context: TechniqueContext) -> Requests:
        """Moments of the tensors between the layers."""
        return _moments(find_pairs(context.graph, self._clips(context.graph))[0] if self.absorb_biases else ())

    def _clips(self, graph: Graph) -> frozenset[str]:
        return _upper_clips(graph) if self.clip != "keep" else frozenset()

    def apply(self, context: TechniqueContext) -> TechniqueReport:
        """Equalize, then absorb; where neither data nor batch norms tell of the biases, none is absorbed."""
        model, graph = context.model, context.graph
        clips = self._clips(graph)
        pairs, left = find_pairs(graph, clips)
        if not pairs:
            return TechniqueReport("EqualizeCrossLayers", (), {**left} or {"model": "it has no pair of layers"})
        distributions = {
            pair.tensor: context.batch_norms[pair.tensor] for pair in pairs if pair.tensor in context.batch_norms
        }
        requests = _moments(pairs if self.absorb_biases else ())
        if requests.float and context.can_observe(requests):
            distributions.update(_distributions(requests, context.observe(requests).float))
        draft = Draft(graph, model.weight)
        factors = _factors(draft, pairs, self.sweeps)
        _rescale(draft, pairs, factors)
        changed = [_described(pair, factor) for pair, factor in zip(pairs, factors, strict=True)]
        for pair, factor in zip(pairs, factors, strict=True):
            normal = distributions.pop(pair.tensor, None)
            if normal is not None and normal.mean.size == factor.size:  # else its channels are on another axis
                distributions[pair.tensor] = normal.moved(1 / factor, np.zeros_like(factor))
            for node in pair.between:
                if node.name in clips:
                    _replace_clip(draft, node, channel_axis(graph, pair.first), factor, self.clip == "per-channel")
        notes = dict(left)
        for pair in pairs if self.absorb_biases else ():
            absorbed, reason = _absorb(draft, pair, distributions, clipped=self.clip == "per-channel")
            if absorbed:
                changed.append(absorbed)
            elif reason:
                notes[f"high biases of {pair.first.name}"] = reason
        model.edit(draft)
        return TechniqueReport("EqualizeCrossLayers", tuple(changed), notes, batch_norms=distributions)


# --- equalization ---------------------------------------------------------------------------------------------------


def _factors(draft: Draft, pairs: Sequence[Pair], sweeps: int) -> list[Floats]:
    """The factor of each channel of each pair; weights enter by the largest absolute value of their taps alone."""
    matrices: dict[str, Floats] = {}
    for pair in pairs:
        for layer in (pair.first, pair.second):
            weight = draft.value(layer.inputs[1] or "").astype(np.float64)
            matrices[layer.name] = np.abs(weight).reshape(*weight.shape[:2], -1).max(axis=2, initial=0.0)
    total = [np.ones(matrices[pair.first.name].shape[0]) for pair in pairs]
    for _ in range(sweeps):
        largest = 0.0
        for index, pair in enumerate(pairs):
            first, second = matrices[pair.first.name], matrices[pair.second.name]
            r1, r2 = first.max(axis=1, initial=0.0), input_ranges(second, groups_of(pair.second))
            lively = (r1 > _EMPTY * r1.max(initial=0.0)) & (r2 > _EMPTY * r2.max(initial=0.0))
            factor = np.ones_like(r1)
            factor[lively] = np.sqrt(r1[lively] * r2[lively]) / r2[lively]
            matrices[pair.first.name] = first / by_output(first, factor)
            matrices[pair.second.name] = second * by_input(second, groups_of(pair.second), factor)
            total[index] = total[index] * factor
            largest = max(largest, float(np.abs(factor - 1).max(initial=0.0)))
        if largest < _CONVERGED:
            break
    return total


def _rescale(draft: Draft, pairs: Sequence[Pair], factors: Sequence[Floats]) -> None:
    """Write weights and biases with all their factors, each rounded to float32 once."""
    outward = {pair.first.name: factor for pair, factor in zip(pairs, factors, strict=True)}
    inward = {pair.second.name: factor for pair, factor in zip(pairs, factors, strict=True)}
    for name in dict.fromkeys(layer.name for pair in pairs for layer in (pair.first, pair.second)):
        layer = draft.graph.node(name)
        weight = draft.value(layer.inputs[1] or "").astype(np.float64)
        if name in inward:
            weight = weight * by_input(weight, groups_of(layer), inward[name])
        if name in outward:
            weight = weight / by_output(weight, outward[name])
            if layer.input(2) is not None:
                set_bias(draft, layer, bias_of(draft, layer, weight.shape[0]) / outward[name])
        draft.apply(SetWeights({layer.inputs[1] or "": weight}))


def _upper_clips(graph: Graph) -> frozenset[str]:
    """Names of the nodes ``Clip(0, b)``."""
    clips = (node for node in graph.nodes if node.op == "Clip" and len(node.inputs) == 1)
    return frozenset(
        node.name for node in clips if node.attributes.get("min") == 0 and node.attributes.get("max", 0) > 0
    )


def _replace_clip(draft: Draft, node: Node, axis: int, factor: Floats, per_channel: bool) -> None:
    chain: tuple[NewNode, ...] = (NewNode("Relu"),)
    weights = {}
    rank = draft.graph.tensors[node.outputs[0]].rank or 0
    if per_channel:
        name = draft.free_name(f"{node.name}.bound")
        bound = node.attributes["max"] / factor
        weights = {name: bound.reshape(-1, *(1,) * (rank - 1 - axis)).astype(np.float32)}
        chain = (*chain, NewNode("Min", (name,)))
    draft.apply(Replace(node.name, chain, weights))


def _described(pair: Pair, factor: Floats) -> str:
    return (
        f"{pair.first.name} and {pair.second.name}: factors {factor.min():.3g} to {factor.max():.3g} "
        f"over {factor.size} channels"
    )


# --- high biases ----------------------------------------------------------------------------------------------------


def _moments(pairs: Sequence[Pair]) -> Requests:
    """Moments of the tensors between layers."""
    return Requests([Request(Tensor(name), Moments()) for name in dict.fromkeys(pair.tensor for pair in pairs)])


def _distributions(requests: Requests, moments: Sequence[Moments]) -> dict[str, NormalPerChannel]:
    """Mean and deviation of each channel of the requested tensors."""
    observed = zip(requests.float, moments, strict=True)
    return {str(request.site): NormalPerChannel(item.mean, np.sqrt(item.variance)) for request, item in observed}


def _absorb(draft: Draft, pair: Pair, distributions: dict[str, NormalPerChannel], clipped: bool) -> tuple[str, str]:
    """What was absorbed, or why nothing could be; both empty where no bias is high."""
    normal = distributions.get(pair.tensor)
    if normal is None:
        return "", "neither batch norm nor data tell its distribution"
    first, second = draft.graph.node(pair.first.name), draft.graph.node(pair.second.name)
    activated = any(node.op in ("Relu", "PRelu", "LeakyRelu", "Clip") for node in pair.between)
    high = normal.mean - _DEVIATIONS * normal.deviation
    moved = _useful(normal, np.maximum(high, 0.0) if activated else normal.mean, activated)
    if not np.any(moved):
        return "", ""
    if _pads(second) or any(_pads(node) for node in pair.between):
        return "", f"{second.name} or what is before it pads with zeros, where the bias would be missing"
    if clipped and any(node.op == "Clip" for node in pair.between):
        return "", "its upper clip would move with the bias"
    weight = draft.value(second.inputs[1] or "")
    if second.op == "ConvTranspose" and not _is_pointwise(second, weight.shape[2:]):
        return "", f"{second.name} overlaps unevenly, so that no one bias stands for it"
    shift = response(weight, second, moved)
    set_bias(draft, first, bias_of(draft, first, moved.size) - moved)
    set_bias(draft, second, bias_of(draft, second, weight.shape[0]) + shift)
    distributions[pair.tensor] = replace(normal, mean=normal.mean - moved)
    count = int(np.count_nonzero(moved))
    return f"{pair.second.name} absorbed the bias of {count} channel(s) of {pair.first.name}", ""


def _useful(normal: NormalPerChannel, moved: Floats, activated: bool) -> Floats:
    """As little of `moved`, one value a channel, as takes the range of the tensor to where all of it would."""
    high = normal.mean + _REACH * normal.deviation
    low = np.zeros_like(high) if activated else normal.mean - _REACH * normal.deviation
    top, bottom = max(float((high - moved).max()), 0.0), 0.0 if activated else min(float((low - moved).min()), 0.0)
    width = max(float(high.max()), 0.0) - min(float(low.min()), 0.0)
    if top - bottom > (1 - _GAIN) * width:
        return np.zeros_like(moved)
    return np.maximum(high - top, 0.0) if activated else np.clip(0.0, high - top, low - bottom)


def _pads(node: Node) -> bool:
    return "auto_pad" in node.attributes or (node.op != "MaxPool" and any(node.attributes.get("pads", ())))


def _is_pointwise(node: Node, kernel: Sequence[int]) -> bool:
    """Whether every output of a transposed convolution meets the same taps."""
    ones = (1,) * len(kernel)
    return tuple(kernel) == ones and tuple(node.attributes.get("strides", ones)) == ones
