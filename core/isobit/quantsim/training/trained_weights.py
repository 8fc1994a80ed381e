"""What training has done to the weights of a model, as an edit: no framework says when it changes one."""

from __future__ import annotations

from collections.abc import Mapping

from isobit.backend.checked_model import CheckedModel
from isobit.backend.optional import HoldsAdapters
from isobit.edits.edit import TrainedWeights
from isobit.graph.adapters import find_adapters
from isobit.graph.fingerprint import fingerprint


def trained_since(model: CheckedModel, before: Mapping[str, str]) -> TrainedWeights | None:
    """The constants whose values are not those of the hashes `before`, or None.

    Those of adapters are left out: they are kept by the adapter's name, whichever is in the model.
    """
    now, apart = fingerprint(model.graph, model.weight), adapter_constants(model)
    moved = [name for name in model.graph.weights if name not in apart and before.get(name, now[name]) != now[name]]
    return TrainedWeights({name: model.weight(name) for name in moved}) if moved else None


def adapter_constants(model: CheckedModel) -> set[str]:
    """The constants of adapters: their weights, and the factors behind them."""
    inner, graph = model.inner, model.graph
    if not isinstance(inner, HoldsAdapters):
        return set()
    names = {constant for adapter in inner.adapters for constant in inner.adapter_constants(adapter)}
    nodes = (node for adapter in find_adapters(graph) for node in adapter.nodes)
    return names | {name for node in nodes for name in node.inputs if name is not None and name in graph.weights}
