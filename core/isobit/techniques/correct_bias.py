"""Bias correction: the mean error that quantization puts on each output channel goes into the bias.

Sources: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.2
and appendix C (analytic); Finkelstein et al., "Fighting Quantization Bias With Bias", arXiv 1906.03193 (empirical).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from isobit.backend.checked_model import CheckedModel
from isobit.calibration.resolve import resolve_weights
from isobit.edits.draft import Draft
from isobit.encodings.encoding import Encoding
from isobit.errors import DataError, FormatError
from isobit.graph.graph import Graph, Node
from isobit.graph.sites import Input, Site, Tensor, Weight
from isobit.placement.plan import Plan
from isobit.statistics.channel_means import ChannelMeans
from isobit.statistics.observer import Request
from isobit.techniques.context import Requests, TechniqueContext
from isobit.techniques.layers.expected_means import expected_means
from isobit.techniques.layers.weighted_layer import (
    LAYERS,
    Floats,
    bias_obstacle,
    bias_of,
    groups_of,
    response,
    set_bias,
)
from isobit.techniques.technique import TechniqueReport


@dataclass(frozen=True)
class CorrectBias:
    """Shift the bias of each quantized Conv, ConvTranspose and Linear so that its mean output is the float model's.

    ``"fast"`` corrects the mean error that each layer makes itself, from the means of inputs in one float pass, which
    is that of calibration too; what comes in with an input is left to the layers before. ``"full"`` goes layer after
    layer, each measured behind the corrected ones before it: one pass each, of a model with quantized weights and with
    activations that are clipped to their grids but not rounded, so that means are the same in all frameworks, to float
    accuracy. ``"analytic"`` needs no data: it takes the input means from the batch norms that were folded before.
    """

    mode: Literal["fast", "full", "analytic"] = "fast"

    def __post_init__(self) -> None:
        if self.mode not in ("fast", "full", "analytic"):
            raise FormatError(f"mode is 'fast', 'full' or 'analytic', not {self.mode!r}")

    @property
    def uses_data(self) -> bool:
        """In all modes but ``"analytic"``."""
        return self.mode != "analytic"

    @property
    def shares_calibration(self) -> bool:
        """In the mode ``"fast"``: the means come in the pass that the ranges need."""
        return self.mode == "fast"

    def requests(self, context: TechniqueContext) -> Requests:
        """Means in float, of the inputs of all layers in the fast mode, of their outputs in the full one."""
        layers, _ = _layers(context.graph, context.plan)
        return self._requests(layers) if self.uses_data and layers else Requests()

    def _requests(self, layers: list[Node]) -> Requests:
        fast = self.mode == "fast"
        return Requests(_mean_requests(layers, inputs=fast, outputs=not fast), ranges=True)

    def apply(self, context: TechniqueContext) -> TechniqueReport:
        """Correct every layer whose weight the plan quantizes; those without a bias get one."""
        model = context.model
        layers, left = _layers(model.graph, context.plan)
        if not layers:
            return TechniqueReport("CorrectBias", (), {**left} or {"model": "it has no quantized layer"})
        if self.mode == "analytic":
            shifts = self._analytic(context, layers, left)
        else:
            correct = _fast if self.mode == "fast" else _full
            shifts = correct(context, self._requests(layers), layers)
            reason = "the channels of its input are on another axis, or no batch of it is finite"
            left.update({layer.name: reason for layer in layers if layer.name not in shifts})
        draft = Draft(model.graph, model.weight)
        for name, shift in shifts.items():
            layer = draft.graph.node(name)
            set_bias(draft, layer, bias_of(draft, layer, shift.size) + shift, compensates=True)
        if draft.edits:
            model.edit(draft)
        changed = tuple(f"{name}: by at most {np.abs(shift).max():.3g}" for name, shift in shifts.items())
        return TechniqueReport("CorrectBias", changed, left)

    def _analytic(self, context: TechniqueContext, layers: list[Node], left: dict[str, str]) -> dict[str, Floats]:
        model = context.model
        encodings = resolve_weights(model.graph, context.plan, model.weight, frozen=context.frozen)
        means = expected_means(model.graph, model.weight, context.batch_norms)
        shifts = {}
        for layer in layers:
            mean = means.get(layer.inputs[0] or "")
            if mean is None:
                left[layer.name] = "no batch norm tells the mean of its input"
                continue
            weight = model.weight(layer.inputs[1] or "").astype(np.float64)
            error = _quantized_weight(model, layer, encodings) - weight
            shifts[layer.name] = -response(error, layer, mean, _sizes(model.graph, layer))
        return shifts


def _layers(graph: Graph, plan: Plan) -> tuple[list[Node], dict[str, str]]:
    layers, left = [], {}
    for node in graph.nodes:
        if node.op not in LAYERS or _weight_site(node, plan.placements) is None:
            continue
        computed = node.inputs[1] not in graph.weights
        obstacle = "its weight is computed" if computed else bias_obstacle(graph, node)
        if obstacle:
            left[node.name] = obstacle
        elif graph.tensors[node.outputs[0]].channel_axis is None:
            left[node.name] = "the rank of its output is unknown"
        else:
            layers.append(node)
    return layers, left


def _weight_site(layer: Node, by_site: Mapping[Site, object]) -> Site | None:
    """Where the weight of a layer is quantized."""
    sites = (Input(layer.name, 1), Weight(layer.inputs[1] or ""), Tensor(layer.inputs[1] or ""))
    return next((site for site in sites if site in by_site), None)


def _quantized_weight(model: CheckedModel, layer: Node, encodings: Mapping[Site, Encoding]) -> Floats:
    weight = model.weight(layer.inputs[1] or "")
    site = _weight_site(layer, encodings)
    return (weight if site is None else encodings[site].fake_quantize(weight)).astype(np.float64)


def _sizes(graph: Graph, layer: Node) -> tuple[object, ...]:
    return (graph.tensors[layer.inputs[0] or ""].shape or ())[2:] if layer.op != "Linear" else ()


def _fast(context: TechniqueContext, requests: Requests, layers: list[Node]) -> dict[str, Floats]:
    """All layers from one float pass: ``(W - W^) E[x]``.

    It is the mean error that the layer itself makes: what comes in with its input is left to the layers before it.
    """
    means = _Means(requests.float, context.observe(requests).float)
    model = context.model
    encodings = resolve_weights(model.graph, context.plan, model.weight, frozen=context.frozen)
    shifts = {}
    for layer in layers:
        weight = _quantized_weight(model, layer, encodings)
        arrived = means.input(layer)
        channels = weight.shape[1] * groups_of(layer)
        if arrived is not None and arrived.size == channels:  # else its channels are on another axis
            error = model.weight(layer.inputs[1] or "").astype(np.float64) - weight
            shifts[layer.name] = response(error, layer, arrived, _sizes(model.graph, layer))
    return shifts


def _full(context: TechniqueContext, requests: Requests, layers: list[Node]) -> dict[str, Floats]:
    """Layer after layer, on a copy that gets each correction before the next layer is measured."""
    context.require_passes(1 + len(layers))
    plain = _Means(requests.float, context.observe(requests).float)
    copy = context.weights_quantized_copy()
    shifts = {}
    for index, layer in enumerate(layers):
        output_requests = _mean_requests([layer], outputs=True)
        context.observe_copy(copy, output_requests, f"after {index} of {len(layers)} layers")
        measured = _Means(output_requests, [request.observer for request in output_requests])
        exact, quantized = plain.output(layer), measured.output(layer)
        if exact is None or quantized is None:
            continue
        shift = shifts[layer.name] = _difference(exact, quantized, layer)
        draft = Draft(copy.graph, copy.weight)
        current = draft.graph.node(layer.name)
        set_bias(draft, current, bias_of(draft, current, shift.size) + shift)
        copy.edit(draft)
    return shifts


def _mean_requests(layers: list[Node], *, inputs: bool = False, outputs: bool = False) -> list[Request]:
    """Means of layers' inputs or outputs."""
    names = [
        name
        for layer in layers
        for name in (layer.inputs[0] if inputs else None, layer.outputs[0] if outputs else None)
    ]
    return [Request(Tensor(name), ChannelMeans()) for name in dict.fromkeys(names) if name is not None]


def _difference(plain: Floats, quantized: Floats, layer: Node) -> Floats:
    """Float means less quantized ones; statistics from a file may be of other channels."""
    if plain.shape != quantized.shape:
        raise DataError(
            f"the statistics beside {layer.name!r} hold {plain.size} and {quantized.size} means, float and quantized: "
            "observe again with data"
        )
    return plain - quantized


class _Means:
    """The observed means of layers' inputs and outputs."""

    def __init__(self, requests: Sequence[Request], observed: Sequence[Any]) -> None:
        self._observed = {str(request.site): item for request, item in zip(requests, observed, strict=True)}

    def output(self, layer: Node) -> Floats | None:
        return self._mean(layer.outputs[0])

    def input(self, layer: Node) -> Floats | None:
        return self._mean(layer.inputs[0] or "")

    def _mean(self, name: str) -> Floats | None:
        """None where nothing finite was seen."""
        means: ChannelMeans = self._observed[name]
        return means.mean if means.count else None
