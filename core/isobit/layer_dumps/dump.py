"""`isobit.dump`: what every layer computes on one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.backend.checked_model import CheckedModel
from isobit.backend.contract import OnnxName
from isobit.data import Batch, Dataset
from isobit.encodings.encoding import Encoding
from isobit.errors import FormatError, IsobitError, did_you_mean
from isobit.graph.graph import Graph
from isobit.graph.sites import Input, Site, Tensor
from isobit.layer_dumps.layer_dump import DumpedTensor, LayerDump
from isobit.quantsim.checks.whole_tensor import WholeTensor
from isobit.quantsim.quantsim import QuantSim
from isobit.statistics.observer import Request


def dump(sim: QuantSim, batch: Any, *, names: str | Sequence[str] | None = None, simulated: bool = True) -> LayerDump:
    """The values of all float tensors of a model on one batch, inputs and outputs among them.

    With `simulated`, as the quantizers make them: of a tensor that is rounded for one of its readers alone, what that
    reader gets is there too, by the name ``node[input]``. Without, the float model's. `names` are patterns of tensors
    or of the nodes that compute them. ``.save(path)`` writes it, `isobit.compare_dumps` compares two. It takes the
    memory of all these tensors. Raises FormatError for a pattern that matches nothing, ModelError where the simulator
    is not calibrated.
    """
    graph = sim.graph
    prepared = next(iter(Dataset([batch], graph)))
    chosen, left_out = _chosen(graph, names)
    model = sim.simulation.float_model()
    if simulated:
        sim.simulation.require_quantizers()
        model = sim.backend_model
    encodings: Mapping[Site, Encoding] = model.encodings()
    if not simulated:
        model.enable(list(encodings), on=False)
    try:
        values = _observed(model, prepared, chosen, encodings if simulated else {})
    finally:
        if not simulated:
            model.enable(list(encodings), on=True)
    onnx = _onnx_names(model)
    tensors = {}
    for site, kept in values.items():
        if kept is None:
            left_out[str(site)] = "the backend does not show it"
            continue
        tensor = graph.node(site.node).inputs[site.index] if isinstance(site, Input) else site.name
        encoding = encodings.get(site) if simulated else None
        scale = encoding.scale if encoding is not None and encoding.spec.is_integer else None
        place = onnx.get(site)
        tensors[str(site)] = DumpedTensor(
            kept,
            "" if place is None else place.name if place.input is None else f"{place.name}[{place.input}]",
            graph.tensors[tensor or ""].channel_axis,
            scale,
            "" if place is None else "; ".join(map(str, place.layout)),
        )
    return LayerDump(tensors, simulated, left_out)


def _chosen(graph: Graph, names: str | Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """The float tensors that the patterns mean, in execution order, and those of other types."""
    computed = {name: node.name for node in graph.nodes for name in node.outputs if name in graph.tensors}
    everything = {**{name: name for name in graph.inputs if name in graph.tensors}, **computed}
    if names is not None:
        patterns = [names] if isinstance(names, str) else list(names)
        for pattern in patterns:
            known = (*everything, *computed.values())
            if not any(fnmatchcase(name, pattern) for name in known):
                raise FormatError(f"no tensor or node is called {pattern!r}{did_you_mean(pattern, known)}")
        everything = {
            name: node
            for name, node in everything.items()
            if any(fnmatchcase(each, pattern) for pattern in patterns for each in (name, node))
        }
    floats = [name for name in everything if graph.is_float(name)]
    others = {name: f"it is {graph.tensors[name].dtype}" for name in everything if name not in set(floats)}
    return floats, others


def _observed(
    model: CheckedModel, batch: Batch, names: Sequence[str], encodings: Mapping[Site, Encoding]
) -> dict[Tensor | Input, NDArray[np.float32] | None]:
    kept: dict[Tensor | Input, WholeTensor] = {Tensor(name): WholeTensor() for name in names}
    alone = [site for site in encodings if isinstance(site, Input)]
    for site in alone:
        if model.graph.node(site.node).inputs[site.index] in set(names):
            kept[site] = WholeTensor()
    requests = [Request(site, whole, "after" if site in encodings else "before") for site, whole in kept.items()]
    model.observe([batch], requests)
    return {site: whole.values for site, whole in kept.items()}


def _onnx_names(model: CheckedModel) -> Mapping[Site, OnnxName]:
    """Names in an exported file; none where the model has no ONNX form."""
    try:
        return model.to_onnx()[1]
    except IsobitError:
        return {}
