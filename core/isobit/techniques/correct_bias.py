"""Bias correction: the mean error that quantization puts on each output channel goes into the bias.

Sources: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.2
and appendix C (analytic); Finkelstein et al., "Fighting Quantization Bias With Bias", arXiv 1906.03193 (empirical).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from isobit.backend import BackendModel, Request
from isobit.calibration.scheme import Calibrator, parse_calibrator
from isobit.data import Dataset
from isobit.edits import Draft
from isobit.encoding import Encoding
from isobit.errors import FormatError
from isobit.graph import Graph, Node
from isobit.normal import Normal
from isobit.plan import Plan
from isobit.plugins import registry
from isobit.resolve import resolve_weights
from isobit.simulating import simulate_weights
from isobit.sites import Input, Site, Tensor, Weight
from isobit.statistics import Moments
from isobit.techniques.expected_values import expected_means
from isobit.techniques.technique import TechniqueReport
from isobit.techniques.weighted_layer import LAYERS, Floats, bias_obstacle, bias_of, groups_of, response, set_bias


@dataclass(frozen=True)
class CorrectBias:
    """Shift the bias of each quantized Conv, ConvTranspose and Linear so that its mean output is the float model's.

    Means are of a model with quantized weights and with activations that are clipped to their grids but not rounded:
    so they are the same in all frameworks, to float accuracy.

    ``"fast"`` corrects all layers from two passes, one through the float and one through the quantized model: of a
    layer's shift, what came in with its input is left to the layers before it. ``"full"`` goes layer after layer, each
    measured behind the corrected ones before it: one pass each. ``"analytic"`` needs no data: it takes the input means
    from `outputs`, what FoldBatchNorms reported. `calibration` is the scheme of the quantized model that is compared.
    """

    mode: Literal["fast", "full", "analytic"] = "fast"
    calibration: str | Calibrator = "minmax"
    outputs: Mapping[str, Normal] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.mode not in ("fast", "full", "analytic"):
            raise FormatError(f"mode is 'fast', 'full' or 'analytic', not {self.mode!r}")

    def apply(self, model: BackendModel, data: Dataset | None = None, plan: Plan | None = None) -> TechniqueReport:
        """Correct every layer whose weight the plan quantizes; those without a bias get one."""
        if plan is None:
            return _nothing("it needs a plan: apply it through QuantSim")
        layers, left = _layers(model.graph, plan)
        if not layers:
            return TechniqueReport("CorrectBias", (), {**left} or {"model": "it has no quantized layer"})
        if self.mode == "analytic":
            shifts = self._analytic(model, plan, layers, left)
        elif data is None:
            return _nothing(f"{self.mode!r} needs data; 'analytic' does not")
        else:
            calibrator = parse_calibrator(self.calibration, registry().calibrators())
            correct = _fast if self.mode == "fast" else _full
            shifts = correct(model, plan, data, calibrator, layers)
        draft = Draft(model.graph, model.weight)
        for name, shift in shifts.items():
            layer = draft.graph.node(name)
            set_bias(draft, layer, bias_of(draft, layer, shift.size) + shift)
        if draft.edits:
            model.edit(draft.edits)
        changed = tuple(f"{name}: by at most {np.abs(shift).max():.3g}" for name, shift in shifts.items())
        return TechniqueReport("CorrectBias", changed, left)

    def _analytic(self, model: BackendModel, plan: Plan, layers: list[Node], left: dict[str, str]) -> dict[str, Floats]:
        encodings = resolve_weights(model.graph, plan, model.weight, frozen=plan.frozen)
        means = expected_means(model.graph, model.weight, self.outputs)
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


def _nothing(why: str) -> TechniqueReport:
    return TechniqueReport("CorrectBias", (), {"model": why})


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


def _weight_site(layer: Node, known: Mapping[Site, object]) -> Site | None:
    """Where the weight of a layer is quantized."""
    sites = (Input(layer.name, 1), Weight(layer.inputs[1] or ""), Tensor(layer.inputs[1] or ""))
    return next((site for site in sites if site in known), None)


def _quantized_weight(model: BackendModel, layer: Node, encodings: Mapping[Site, Encoding]) -> Floats:
    weight = model.weight(layer.inputs[1] or "")
    site = _weight_site(layer, encodings)
    return (weight if site is None else encodings[site].fake_quantize(weight)).astype(np.float64)


def _sizes(graph: Graph, layer: Node) -> tuple[object, ...]:
    return (graph.tensors[layer.inputs[0] or ""].shape or ())[2:] if layer.op != "Linear" else ()


def _fast(
    model: BackendModel, plan: Plan, data: Dataset, calibrator: Calibrator, layers: list[Node]
) -> dict[str, Floats]:
    """All layers from one float and one quantized pass.

    ``E[y] - E[y^] - W^ (E[x] - E[x^])``: the layers before will correct their own part, which is not corrected twice.
    """
    data.require_passes(2, "CorrectBias")
    plain, quantized = (_Means(layers, inputs=True) for _ in range(2))
    twin = simulate_weights(model, plan, data, calibrator, plain.requests)
    twin.observe(data, quantized.requests)
    encodings = twin.encodings()
    shifts = {}
    for layer in layers:
        shift = plain.output(layer) - quantized.output(layer)
        weight = _quantized_weight(model, layer, encodings)
        arrived = plain.input(layer) - quantized.input(layer)
        if arrived.size == weight.shape[1] * groups_of(layer):  # else its channels are on another axis
            shift = shift - response(weight, layer, arrived, _sizes(model.graph, layer))
        shifts[layer.name] = shift
    return shifts


def _full(
    model: BackendModel, plan: Plan, data: Dataset, calibrator: Calibrator, layers: list[Node]
) -> dict[str, Floats]:
    """Layer after layer, on a copy that gets each correction before the next layer is measured."""
    data.require_passes(1 + len(layers), "CorrectBias(mode='full')")
    plain = _Means(layers, inputs=False)
    twin = simulate_weights(model, plan, data, calibrator, plain.requests)
    shifts = {}
    for layer in layers:
        measured = _Means([layer], inputs=False)
        twin.observe(data, measured.requests)
        shift = shifts[layer.name] = plain.output(layer) - measured.output(layer)
        draft = Draft(twin.graph, twin.weight)
        here = draft.graph.node(layer.name)
        set_bias(draft, here, bias_of(draft, here, shift.size) + shift)
        twin.edit(draft.edits)
    return shifts


class _Means:
    """Observers of the means of layers' outputs, and inputs before they are clipped for the layer."""

    def __init__(self, layers: list[Node], *, inputs: bool) -> None:
        names = [name for layer in layers for name in (layer.outputs[0], layer.inputs[0] if inputs else None)]
        self._moments = {name: Moments() for name in names if name is not None}

    @property
    def requests(self) -> list[Request]:
        return [Request(Tensor(name), moments) for name, moments in self._moments.items()]

    def output(self, layer: Node) -> Floats:
        return self._moments[layer.outputs[0]].mean

    def input(self, layer: Node) -> Floats:
        return self._moments[layer.inputs[0] or ""].mean
