"""Networks with the same function and channels of very different sizes, which rounding harms and techniques repair."""

from __future__ import annotations

import numpy as np

from isobit.backend.checked_model import CheckedModel
from isobit.edits.draft import Draft
from isobit.edits.edit import NewNode, Replace, SetWeights
from isobit.techniques.context import TechniqueContext
from isobit.techniques.fold_batch_norms import FoldBatchNorms
from isobit.techniques.layers.layer_pairs import find_pairs
from isobit.techniques.layers.weighted_layer import LAYERS, bias_of, by_input, by_output, groups_of, set_bias
from isobit.testing.networks.builder import Network


def network_of(model: CheckedModel, name: str) -> Network:
    """An opened model as a description that every backend can build."""
    return Network(name, model.graph, {weight: np.array(model.weight(weight)) for weight in model.graph.weights})


def folded_with_relu(model: CheckedModel, name: str) -> Network:
    """A copy of a model with its batch norms folded and every Clip a Relu, which lets factors through."""
    folded = model.copy()
    FoldBatchNorms().apply(TechniqueContext(folded))
    folded.edit([Replace(node.name, (NewNode("Relu"),)) for node in folded.graph.nodes if node.op == "Clip"])
    return network_of(folded, name)


def rescaled(network: Network, decades: float = 1.5, seed: int = 0) -> Network:
    """The same function with every channel between two layers multiplied by up to ``10**decades`` or divided by it."""
    rng = np.random.default_rng(seed)
    weights = {name: np.array(value, np.float64) for name, value in network.weights.items()}
    for pair in find_pairs(network.graph)[0]:
        first, second = (weights[layer.inputs[1] or ""] for layer in (pair.first, pair.second))
        factors = np.power(10.0, rng.uniform(-decades, decades, first.shape[0]))
        first *= factors.reshape(-1, *(1,) * (first.ndim - 1))
        if pair.first.input(2) is not None:
            weights[pair.first.inputs[2] or ""] *= factors
        group = int(pair.second.attributes.get("group", 1))
        per_out, per_in = second.shape[0] // group, second.shape[1]
        for index in range(group):
            group_factors = factors[index * per_in : (index + 1) * per_in].reshape(1, -1, *(1,) * (second.ndim - 2))
            second[index * per_out : (index + 1) * per_out] /= group_factors
    return Network(f"{network.name}_rescaled", network.graph, {n: v.astype(np.float32) for n, v in weights.items()})


def unbalance(model: CheckedModel, curve: str, octaves: float = 2.0, seed: int = 0) -> None:
    """Fold batch norms, put `curve` in the place of every Clip, and make the channels before it differ in size.

    The layers behind take that back as far as the curve lets it through; the function is another one.
    """
    FoldBatchNorms().apply(TechniqueContext(model))
    draft, rng = Draft(model.graph, model.weight), np.random.default_rng(seed)
    for node in model.graph.nodes:
        first = model.graph.producer(node.inputs[0] or "")
        if node.op != "Clip" or first is None or first.op not in LAYERS:
            continue
        rows = draft.value(first.inputs[1] or "")
        factors = np.exp2(octaves * rng.standard_normal(len(rows)))
        draft.apply(SetWeights({first.inputs[1] or "": rows * by_output(rows, factors)}))
        set_bias(draft, draft.graph.node(first.name), bias_of(draft, first, len(rows)) * factors)
        for use in model.graph.uses(node.outputs[0]):
            if use.node.op in LAYERS:
                name = use.node.inputs[1] or ""
                columns = draft.value(name)
                draft.apply(SetWeights({name: columns / by_input(columns, groups_of(use.node), factors)}))
        draft.apply(Replace(node.name, (NewNode(curve),)))
    model.edit(draft)
