"""Low-rank factors of a layer: which layers, which rank, and what the two factors cost.

A layer of rank r becomes two, the first with r outputs. Each of them costs so much a rank, so the rank follows from the
share of multiply-accumulates that is to be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from isobit.backend.checked_model import CheckedModel
from isobit.edits.draft import Draft
from isobit.edits.edit import NewNode, Replace
from isobit.errors import FormatError
from isobit.graph.graph import Graph, Node
from isobit.techniques.layers.weighted_layer import bias_obstacle, groups_of, weight_obstacle
from isobit.techniques.technique import TechniqueReport

Floats = NDArray[np.float64]
Factors = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Split:
    """How one layer can be split: its weight as a matrix, the cost of each rank, and the pair of layers of a rank."""

    matrix: Floats
    cost_of_rank: float
    layers: Callable[[Floats, Floats], tuple[Part, Part]]


@dataclass(frozen=True, eq=False)
class Part:
    """One of the two layers: its weight, and the attributes in which it differs from the layer that it comes from."""

    weight: NDArray[np.float32]
    attributes: Mapping[str, object]


#: The split of a layer, or why it has none.
Splitter = Callable[[Graph, Node, NDArray[np.float32]], Split | str]


def check_keep(name: str, keep: float) -> None:
    """Raise FormatError where `keep` is no share."""
    if not 0 < keep < 1:
        raise FormatError(f"{name}: keep must be above 0 and below 1, not {keep}")


def factorise(
    name: str, model: CheckedModel, split: Splitter, keep: float, ranks: Mapping[str, int], kinds: Iterable[str]
) -> TechniqueReport:
    """Replace every layer of `kinds` that gets cheaper, or that `ranks` names, by two of lower rank.

    `keep` is the share of each layer's multiply-accumulates. Raises FormatError for an unknown layer or rank.
    """
    draft, changed, left = Draft(model.graph, model.weight), [], dict[str, str]()
    layers = {node.name: node for node in model.graph.nodes if node.op in frozenset(kinds)}
    unknown = next((layer for layer in ranks if layer not in layers), None)
    if unknown is not None:
        raise FormatError(f"{name}: ranks names {unknown!r}, which is no {' or '.join(sorted(kinds))} of the model")
    macs = kept_macs = 0.0
    for node in layers.values():
        layer_macs = cost(model.graph, node)
        macs, kept_macs = macs + layer_macs, kept_macs + layer_macs
        reason = obstacle(model.graph, node)
        layer_split = reason or split(model.graph, node, model.weight(node.inputs[1] or ""))
        if isinstance(layer_split, str):
            if node.name in ranks:
                raise FormatError(f"{name}: {node.name!r} cannot be split: {layer_split}")
            left[node.name] = layer_split
            continue
        full = min(layer_split.matrix.shape)
        rank = ranks.get(node.name, int(keep * layer_macs / layer_split.cost_of_rank))
        if not 1 <= rank <= full and node.name in ranks:
            raise FormatError(f"{name}: rank {rank} of {node.name!r} is not in 1 to {full}")
        if node.name not in ranks and not 1 <= rank < full:
            cost_text = "one rank costs more" if rank < 1 else "all ranks together cost less"
            left[node.name] = f"{cost_text} than {keep:.0%} of its multiply-accumulates"
            continue
        _replace(draft, node, layer_split, rank)
        kept_macs += rank * layer_split.cost_of_rank - layer_macs
        share = rank * layer_split.cost_of_rank / layer_macs
        changed.append(f"{node.name}: rank {rank} of {full}, {share:.1%} of its multiply-accumulates")
    if draft.edits:
        model.edit(draft)
    notes = (f"multiply-accumulates of all layers: {kept_macs / macs:.1%} of {macs:.4g} a sample",) if changed else ()
    return TechniqueReport(name, tuple(changed), left, notes=notes)


def obstacle(graph: Graph, node: Node) -> str:
    """Why a layer is not split, or an empty text."""
    if groups_of(node) > 1:
        return f"its {groups_of(node)} groups are matrices of their own"
    return bias_obstacle(graph, node) or weight_obstacle(graph, node)


def cost(graph: Graph, node: Node, weights: int | None = None) -> float:
    """Multiply-accumulates a sample; of a layer with so many weights over the same output. Open sizes count as 1."""
    name = node.inputs[1] or ""
    count = prod(graph.weights[name].shape) if weights is None else weights
    return float(count * prod(spatial_sizes(graph, node.outputs[0], node)))


def spatial_sizes(graph: Graph, tensor: str, node: Node) -> list[int]:
    """How often the weights are applied, along each axis: of images their height and width, else what lies between."""
    shape = graph.tensors[tensor].shape or ()
    inner = shape[2:] if node.op == "Conv" else shape[1:-1]
    return [n if isinstance(n, int) else 1 for n in inner]


def _replace(draft: Draft, node: Node, split: Split, rank: int) -> None:
    u, s, v = np.linalg.svd(split.matrix, full_matrices=False)
    root = np.sqrt(s[:rank])  # half to each factor, so that neither has much larger weights
    parts = split.layers(root[:, None] * v[:rank], u[:, :rank] * root)
    names = [draft.free_name(f"{node.inputs[1]}.{number}") for number in (0, 1)]
    operands: list[tuple[str | None, ...]] = [(names[0],), (names[1], *node.inputs[2:3])]
    chain = tuple(
        NewNode(node.op, operand, {**node.attributes, **part.attributes})
        for operand, part in zip(operands, parts, strict=True)
    )
    weights = {name: part.weight for name, part in zip(names, parts, strict=True)}
    draft.apply(Replace(node.name, chain, weights))
