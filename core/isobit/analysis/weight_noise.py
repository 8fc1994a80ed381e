"""The noise that quantized weights make at the outputs of their layers, by channel, from rows of the layers' inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from isobit.analysis.tensor_noise import Floats
from isobit.backend.checked_model import CheckedModel
from isobit.data import Batch
from isobit.encodings.encoding import Encoding
from isobit.encodings.quant_spec import PerChannel, PerTensor
from isobit.encodings.ranges import encode_weight
from isobit.errors import IsobitError
from isobit.graph.graph import Graph, Node
from isobit.graph.sites import Input, Site, Weight
from isobit.placement.plan import Placement, Plan
from isobit.statistics.layer_rows.patches import Patches
from isobit.statistics.layer_rows.rows import Rows
from isobit.statistics.observer import Request

#: Rows of each layer that are kept.
_ROWS = 1024


@dataclass(frozen=True, eq=False)
class WeightNoise:
    """What the grid of a weight does at the output of a layer, by output channel.

    `power` is the mean square, `shift` the mean, and `by_channel` the mean square if each output channel had a scale of
    its own. `relative` is the noise of the weight to its signal, where the layer's rows are not known.
    """

    site: Site
    power: Floats | None
    shift: Floats | None
    by_channel: Floats | None
    relative: float


def weight_site(node: Node, index: int, plan: Plan) -> Site | None:
    """The site of the quantizer of a constant input."""
    sites: tuple[Site, ...] = (Input(node.name, index), Weight(node.inputs[index] or ""))
    return next((site for site in sites if site in plan.placements), None)


def measure_weights(
    exact: CheckedModel, encodings: Mapping[Site, Encoding], plan: Plan, batches: Sequence[Batch], by_sample: Floats
) -> dict[tuple[str, int], WeightNoise]:
    """The noise of each quantized constant that a node reads, by node and input; one pass of the float model.

    `by_sample` says how much the noise of each sample counts.
    """
    graph = exact.graph
    layers: dict[tuple[str, int], tuple[Site, Rows | None]] = {}
    for node in graph.nodes:
        for index, name in enumerate(node.inputs):
            if name is None or name not in graph.weights or not graph.weights[name].is_float:
                continue
            site = weight_site(node, index, plan)
            if site is not None and site in encodings and plan.placements[site].kind in ("weight", "constant"):
                layers[node.name, index] = site, _rows(graph, node, index)
    requests = [Request(Input(node, 0), rows) for (node, _), (_, rows) in layers.items() if rows is not None]
    if requests:
        exact.observe(iter(batches), requests)
    return {
        key: _noise(exact, graph.node(key[0]), key[1], site, encodings[site], plan.placements[site], rows, by_sample)
        for key, (site, rows) in layers.items()
    }


def _rows(graph: Graph, node: Node, index: int) -> Rows | None:
    try:
        patches = Patches.of(graph, node) if index == 1 and node.input(0) in graph.tensors else None
    except IsobitError:
        return None
    return None if patches is None else Rows(patches, _ROWS)


def _noise(
    model: CheckedModel,
    node: Node,
    index: int,
    site: Site,
    encoding: Encoding,
    placement: Placement,
    rows: Rows | None,
    by_sample: Floats,
) -> WeightNoise:
    weight = model.weight(node.inputs[index] or "").astype(np.float32)
    error = encoding.fake_quantize(weight).astype(np.float64) - weight
    signal = float(np.square(weight, dtype=np.float64).mean())
    relative = float(np.square(error).mean()) / signal if signal > 0 else 0.0
    if rows is None or not len(rows):
        return WeightNoise(site, None, None, None, relative)
    values = rows.values.astype(np.float64)
    is_finite, sample = np.isfinite(values).all((1, 2)), rows.stamps[:, 0]
    counts = by_sample[sample] if by_sample.size == rows.samples else np.ones(len(values))
    values, counts = values[is_finite], counts[is_finite]
    if not counts.sum() > 0:
        return WeightNoise(site, None, None, None, relative)
    patches = rows.patches
    power, shift = _behind(values, counts, patches, error)
    by_channel = None
    if isinstance(encoding.spec.granularity, PerTensor) and weight.ndim > 1:
        finer = encode_weight(weight, encoding.spec.with_granularity(PerChannel()), channel_axis=placement.channel_axis)
        rest = finer.fake_quantize(weight).astype(np.float64) - weight
        by_channel = _behind(values, counts, patches, rest)[0]
    return WeightNoise(site, power, shift, by_channel, relative)


def _behind(rows: Floats, counts: Floats, patches: Patches, error: Floats) -> tuple[Floats, Floats]:
    """Mean square and mean of an error of the weight at the layer's output, by channel."""
    made = np.einsum("rgk,gok->rgo", rows, patches.matrix(error), optimize=True)
    power, shift = (np.tensordot(counts / counts.sum(), a, 1) for a in (np.square(made), made))
    if patches.op == "MatMul":  # a stack of matrices has the channels of one
        return power.mean(0), shift.mean(0)
    return power.reshape(-1), shift.reshape(-1)
