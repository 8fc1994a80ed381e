"""Batch norm folding: a normalisation with fixed statistics is a scale and shift that the layer beside it can carry.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
CVPR 2018, section 3.2; Krishnamoorthi, arXiv 1806.08342.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isobit.edits.draft import Draft
from isobit.edits.edit import NewNode, Replace, SetWeights
from isobit.graph.graph import Graph, Node, Use
from isobit.techniques.context import TechniqueContext
from isobit.techniques.layers.normal import NormalPerChannel
from isobit.techniques.layers.weighted_layer import (
    LAYERS,
    axis_behind,
    bias_obstacle,
    bias_of,
    by_input,
    by_output,
    channel_axis,
    groups_of,
    set_bias,
    weight_obstacle,
)
from isobit.techniques.technique import TechniqueReport

_BATCH_NORM = "BatchNormalization"
_CONSTANTS = frozenset({"Mul", "Div", "Add", "Sub"})
_VIEWS = frozenset({"Reshape", "Transpose"})

#: What a positive factor of a channel passes through.
_HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"})

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class FoldBatchNorms:
    """Fold each batch norm into the layer before it, else into the one after it; what is left becomes scale and shift.

    Where only Relu, LeakyRelu, PRelu or pooling stand between a layer and the batch norm behind it, a scale that is
    positive goes through them into the layer, and the shift alone is left: one operation and one rounding fewer.

    Multiplications and additions of per-channel constants behind a layer, which exporters leave in place of batch
    norms, are folded too, and so is what stands behind a Reshape or a Transpose of a layer that keeps its channels
    together. Computed in float32 in the order ``k = gamma / sqrt(variance + epsilon)``, ``weight * k``,
    ``beta + (bias - mean) * k``, so that an exporter that folds in that order gives the same bits.
    """

    scale_and_shift: bool = True

    def apply(self, context: TechniqueContext) -> TechniqueReport:
        """Fold all that can be folded; needs no data."""
        draft = Draft(context.model.graph, context.model.weight)
        report = self.fold(draft)
        if draft.edits:
            context.model.edit(draft)
        return report

    @np.errstate(divide="ignore", invalid="ignore", over="ignore")  # what is not finite is not folded
    def fold(self, draft: Draft) -> TechniqueReport:
        """Fold all that can be folded in a draft."""
        changed: list[str] = []
        left: dict[str, str] = {}
        outputs: dict[str, NormalPerChannel] = {}
        rescaled: dict[str, Vector | None] = {}
        for node in draft.start.nodes:
            if node.op == _BATCH_NORM or node.op in _CONSTANTS:
                folded, message = self._fold(draft, draft.graph.node(node.name), outputs, rescaled)
                if folded:
                    changed.append(message)
                elif node.op == _BATCH_NORM:
                    left[node.name] = message
        for name in list(left) if self.scale_and_shift else ():
            carrier = _scale_through(draft, draft.graph.node(name), outputs, rescaled)
            if carrier:
                changed.append(f"{name} became a shift, its scale went into {carrier}: {left.pop(name)}")
            elif _to_scale_and_shift(draft, draft.graph.node(name)):
                changed.append(f"{name} became a scale and a shift: {left.pop(name)}")
        return TechniqueReport("FoldBatchNorms", tuple(changed), left, batch_norms=outputs, rescaled=rescaled)

    def _fold(
        self, draft: Draft, node: Node, outputs: dict[str, NormalPerChannel], rescaled: dict[str, Vector | None]
    ) -> tuple[bool, str]:
        """Whether the node was folded, and where to or why not.

        `outputs` gets the distribution of what is folded, `rescaled` the factors of weights.
        """
        layer_before, axis, obstacle = _layer_before(draft.graph, node)
        if layer_before is not None:
            obstacle = _fold_backward(draft, layer_before, node, axis, outputs, rescaled)
            if not obstacle:
                return True, f"{node.name} into {layer_before.name}"
        if node.op != _BATCH_NORM:
            return False, obstacle
        layer_after, forward_obstacle = _layer_after(draft.graph, node)
        if layer_after is not None:
            forward_obstacle = _fold_forward(draft, node, layer_after)
            if not forward_obstacle:
                rescaled[layer_after.input(1) or ""] = None
                return True, f"{node.name} into {layer_after.name}"
        return False, f"{obstacle}; {forward_obstacle}"


# --- the affine map of a node ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Affine:
    """``y = (x - mean) * scale + shift`` for each channel."""

    scale: Vector
    mean: Vector
    shift: Vector

    def __call__(self, x: Vector) -> Vector:
        return np.asarray((x - self.mean) * self.scale + self.shift, np.float32)


def _affine(draft: Draft, node: Node, channels: int, rank: int, axis: int) -> _Affine | None:
    if node.op == _BATCH_NORM:
        names = [node.input(i) for i in range(1, 5)]
        if any(name is None or name not in draft.graph.weights for name in names):
            return None
        gamma, beta, mean, variance = (draft.value(name).astype(np.float32) for name in names if name is not None)
        epsilon = np.float32(node.attributes["epsilon"])
        return _Affine(np.asarray(gamma / np.sqrt(variance + epsilon), np.float32), mean, beta)
    if len(node.inputs) != 2:
        return None
    first, second = node.inputs
    constant = second if second in draft.graph.weights else first
    if constant is None or constant not in draft.graph.weights or (node.op in ("Div", "Sub") and constant == first):
        return None
    vector = _per_channel(draft.value(constant), channels, rank, axis)
    if vector is None:
        return None
    ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    if node.op in ("Mul", "Div"):
        with np.errstate(divide="ignore"):
            factor = vector if node.op == "Mul" else (ones / vector)
        return _Affine(factor, zeros, zeros) if np.all(np.isfinite(factor)) else None
    return _Affine(ones, zeros, vector if node.op == "Add" else -vector)


def _per_channel(value: NDArray[np.float32], channels: int, rank: int, axis: int) -> Vector | None:
    """The constant as one value a channel, if it broadcasts as one against a tensor of `rank` axes."""
    if value.dtype != np.float32 or value.ndim > rank:
        return None
    shape = (1,) * (rank - value.ndim) + value.shape
    if any(size != 1 for i, size in enumerate(shape) if i != axis) or shape[axis] not in (1, channels):
        return None
    return np.asarray(np.broadcast_to(value.reshape(-1), (channels,)), np.float32)


# --- backward -------------------------------------------------------------------------------------------------------


def _layer_before(graph: Graph, node: Node) -> tuple[Node | None, int, str]:
    """The layer before a node, views between them passed, and the axis of its channels in what the node reads.

    None where there is no such layer, and why not.
    """
    source = next((name for name in node.inputs if name in graph.tensors), None)
    views: list[Node] = []
    producer = graph.producer(source or "")
    while producer is not None and producer.op in _VIEWS and graph.sole_reader(producer.outputs[0]) is not None:
        views.append(producer)
        producer = graph.producer(producer.inputs[0] or "")
    if producer is None or producer.op not in LAYERS:
        nearest = views[0] if views else producer
        return None, 0, f"{nearest.op if nearest else 'the model input'} comes before it"
    if graph.sole_reader(producer.outputs[0]) is None:
        return None, 0, f"the output of {producer.name} has other readers"
    axis: int | None = channel_axis(graph, producer)
    for view in reversed(views):
        axis = None if axis is None else axis_behind(graph, view, axis)
    if axis is None:
        return None, 0, f"{views[0].op} before it breaks up the channels of {producer.name}"
    return producer, axis, ""


def _fold_backward(
    draft: Draft,
    layer: Node,
    node: Node,
    axis: int,
    outputs: dict[str, NormalPerChannel],
    rescaled: dict[str, Vector | None],
) -> str:
    """Fold `node`, which reads channels along `axis`, into the layer before it; returns why not, or an empty text."""
    graph = draft.graph
    weight = layer.input(1)
    problem = weight_obstacle(graph, layer) or bias_obstacle(graph, layer)
    if problem or weight is None:
        return problem
    values = draft.value(weight)
    source = next(name for name in node.inputs if name is not None and name in graph.tensors)
    rank = graph.tensors[source].rank or values.ndim
    if node.op == _BATCH_NORM and axis != 1:
        return f"it normalises axis 1, and {layer.name} has its channels on axis {axis}"
    affine = _affine(draft, node, values.shape[0], rank, axis)
    if affine is None or affine.scale.shape != (values.shape[0],):
        return "its parameters are no per-channel constants"
    new_bias = affine(bias_of(draft, layer, values.shape[0]))
    new_weight = np.asarray(values * by_output(values, affine.scale), np.float32)
    if not (np.all(np.isfinite(new_weight)) and np.all(np.isfinite(new_bias))):
        return "the folded weights would not be finite"
    if not np.array_equal(new_weight, values):
        draft.apply(SetWeights({weight: new_weight}))
        earlier = rescaled.get(weight, np.ones_like(affine.scale))
        rescaled[weight] = None if earlier is None else earlier * affine.scale
    set_bias(draft, layer, new_bias)
    _remember(draft, layer, node, affine, outputs)
    draft.apply(Replace(node.name))
    return ""


def _remember(draft: Draft, layer: Node, node: Node, affine: _Affine, outputs: dict[str, NormalPerChannel]) -> None:
    """The distribution of the layer's output from now on: normal with mean beta and deviation gamma."""
    tensor = layer.outputs[0]
    if node.op == _BATCH_NORM:
        gamma = np.abs(draft.value(node.inputs[1] or "")).astype(np.float64)
        outputs[tensor] = NormalPerChannel(affine.shift.astype(np.float64), gamma)
    elif tensor in outputs:
        shift = affine(np.zeros_like(affine.mean)).astype(np.float64)
        outputs[tensor] = outputs[tensor].moved(affine.scale.astype(np.float64), shift)


# --- forward --------------------------------------------------------------------------------------------------------


def _layer_after(graph: Graph, node: Node) -> tuple[Node | None, str]:
    use: Use | None = graph.sole_reader(node.outputs[0])
    if use is None or use.index != 0 or use.node.op not in ("Conv", "Linear"):
        return None, "no single convolution or linear layer reads it"
    if use.node.op == "Linear" and graph.tensors[node.outputs[0]].rank != 2:
        return None, f"it normalises axis 1, and {use.node.name} reads the last axis"
    if any(use.node.attributes.get("pads", ())) or "auto_pad" in use.node.attributes:
        return None, f"{use.node.name} pads with zeros, which the shift would change"
    return use.node, ""


def _fold_forward(draft: Draft, node: Node, layer: Node) -> str:
    graph = draft.graph
    weight = layer.input(1)
    problem = weight_obstacle(graph, layer) or bias_obstacle(graph, layer)
    if problem or weight is None:
        return problem
    values, groups = draft.value(weight), groups_of(layer)
    affine = _affine(draft, node, values.shape[1] * groups, graph.tensors[node.outputs[0]].rank or 4, 1)
    if affine is None:
        return "its parameters are computed"
    offset = affine(np.zeros_like(affine.scale))
    moved = (values * by_input(values, groups, offset)).sum(axis=tuple(range(1, values.ndim)), dtype=np.float64)
    new_weight = np.asarray(values * by_input(values, groups, affine.scale), np.float32)
    new_bias = np.asarray(bias_of(draft, layer, values.shape[0]) + moved, np.float32)
    if not (np.all(np.isfinite(new_weight)) and np.all(np.isfinite(new_bias))):
        return "the folded weights would not be finite"
    draft.apply(SetWeights({weight: new_weight}))
    set_bias(draft, layer, new_bias)
    draft.apply(Replace(node.name))
    return ""


def _scale_through(
    draft: Draft, node: Node, outputs: dict[str, NormalPerChannel], rescaled: dict[str, Vector | None]
) -> str:
    """Leave the shift of a batch norm alone where its scale can go into a layer: its name, or an empty text."""
    graph, rank = draft.graph, draft.graph.tensors[node.outputs[0]].rank
    layer, affine = _layer_behind_kinks(graph, node), _affine(draft, node, 0, rank or 0, 1)
    weight = None if layer is None else layer.input(1)
    if layer is None or affine is None or rank is None or weight is None or not np.all(affine.scale > 0):
        return ""
    values = draft.value(weight)
    if affine.scale.shape != (values.shape[0],):
        return ""
    offset = affine(np.zeros_like(affine.scale))
    new_weight = np.asarray(values * by_output(values, affine.scale), np.float32)
    new_bias = bias_of(draft, layer, values.shape[0]) * affine.scale
    if not all(np.all(np.isfinite(array)) for array in (new_weight, new_bias, offset)):
        return ""
    draft.apply(SetWeights({weight: new_weight}))
    earlier = rescaled.get(weight, np.ones_like(affine.scale))
    rescaled[weight] = None if earlier is None else earlier * affine.scale
    if layer.input(2) is not None:
        set_bias(draft, layer, new_bias)
    tensor = layer.outputs[0]
    if tensor in outputs:
        outputs[tensor] = outputs[tensor].moved(affine.scale.astype(np.float64), np.zeros(affine.scale.shape))
    shift = draft.free_name(f"{node.name}.shift")
    draft.apply(Replace(node.name, (NewNode("Add", (shift,)),), {shift: offset.reshape(-1, *(1,) * (rank - 2))}))
    return layer.name


def _layer_behind_kinks(graph: Graph, node: Node) -> Node | None:
    """The layer whose channels a batch norm reads through what positive factors pass, if nothing else reads there."""
    source = node.inputs[0] or ""
    producer = graph.producer(source)
    while producer is not None and producer.op in _HOMOGENEOUS and graph.sole_reader(source) is not None:
        source = producer.inputs[0] or ""
        producer = graph.producer(source)
    if producer is None or producer.op not in LAYERS or graph.sole_reader(source) is None:
        return None
    is_carrier = not weight_obstacle(graph, producer) and not bias_obstacle(graph, producer)
    return producer if is_carrier and channel_axis(graph, producer) == 1 else None


def _to_scale_and_shift(draft: Draft, node: Node) -> bool:
    """Put Mul and Add by per-channel constants in place of a batch norm that no layer can carry."""
    rank = draft.graph.tensors[node.outputs[0]].rank
    affine = _affine(draft, node, 0, rank or 0, 1)
    if affine is None or rank is None:
        return False
    shape = (-1, *(1,) * (rank - 2))
    offset = affine(np.zeros_like(affine.scale))
    if not (np.all(np.isfinite(affine.scale)) and np.all(np.isfinite(offset))):
        return False
    names = (draft.free_name(f"{node.name}.scale"), draft.free_name(f"{node.name}.shift"))
    weights = dict(zip(names, (affine.scale.reshape(shape), offset.reshape(shape)), strict=True))
    draft.apply(Replace(node.name, (NewNode("Mul", (names[0],)), NewNode("Add", (names[1],))), weights))
    return True
