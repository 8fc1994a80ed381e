"""Layers in sequence: each is solved again for what it gets from the smaller network, nearer to what it gave before.

The factors of a layer, and the weights that read fewer channels, are first found for the inputs that the whole network
gives. Behind layers that err, the inputs are others; what the layer can make up for of that, it does.

Source: the asymmetric reconstruction of Zhang et al., "Accelerating Very Deep Convolutional Networks for Classification
and Detection", IEEE TPAMI 2016, section 3.3, and He et al., "Channel Pruning for Accelerating Very Deep Neural
Networks", ICCV 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isobit.backend.checked_model import CheckedModel
from isobit.data import Batch, Dataset
from isobit.data.samples import SampleAxes
from isobit.edits.draft import Draft
from isobit.edits.edit import SetWeights
from isobit.errors import DataError, ModelError
from isobit.graph.graph import Graph, Node
from isobit.graph.sites import Input, Tensor
from isobit.quantsim.judging.judge import Judge, is_ahead, mean
from isobit.statistics.layer_rows.patches import Patches
from isobit.statistics.layer_rows.rows import Rows, paired_values
from isobit.statistics.observer import Request
from isobit.techniques.layers.corrected import corrected
from isobit.techniques.layers.input_rows import row_limit
from isobit.techniques.layers.weighted_layer import bias_obstacle, bias_of, groups_of, set_bias, weight_obstacle
from isobit.techniques.low_rank.spans import MOST_MOMENTS
from isobit.training.kept_zeros import is_sparse

#: Layers that are solved again, each by a pass of its own: two of one pass would make up for the same error twice.
_PASSES = 16

#: Bytes of the outputs of all layers together.
_ALL_BYTES = 256 << 20

#: About so many samples are learned from.
_SAMPLES = 512

#: Tensors that lost channels, and which are left.
Kept = Mapping[str, Sequence[int]]

#: The layers one by one.
Each = Callable[[Sequence["_Layer"]], Iterator["_Layer"]]


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer of the smaller network, and where the outputs are that it had: some channels of a tensor."""

    node: Node
    inputs: Patches
    outputs: Patches
    channels: Sequence[int] | None
    limit: int

    @property
    def tensor(self) -> str:
        return self.node.outputs[0]


def solved_in_sequence(
    whole: CheckedModel, small: CheckedModel, dataset: Dataset, judge: Judge, kept: Kept, each: Each
) -> tuple[CheckedModel, str]:
    """A copy of `small` whose layers are nearer to those of `whole`, or `small` itself, and what is to be told of it.

    `judge` holds the head of the data, which nothing is learned from: a layer that does not bring its outputs nearer is
    taken back. `each` shows how far the work is. Nothing happens where data serves one pass, or is no more than the
    head.
    """
    layers = _spread(_layers(whole.graph, small.graph, kept))
    rest = _some(dataset)
    if not layers or rest is None:
        return small, ""
    before = best = judge.ratios(small)
    if not any(best):  # no output is of floats: nothing says whether a layer gains
        return small, ""
    targets = {layer.tensor: Rows(layer.outputs, layer.limit) for layer in layers}
    whole.observe(_batches(rest), [Request(Tensor(name), rows, "before") for name, rows in targets.items()])
    changed = 0
    for layer in each(layers):
        rows = Rows(layer.inputs, layer.limit)
        try:
            small.observe(_batches(rest), [Request(Input(layer.node.name, 0), rows, "before")])
        except _OtherOrderError:
            return small, "the data comes in another order each time: layers are not solved in sequence"
        copy = _solved(small, layer, rows, targets.pop(layer.tensor))
        if copy is not None and is_ahead(ratios := judge.ratios(copy), best):
            small, best, changed = copy, ratios, changed + 1
    if not changed:
        return small, ""
    count = "1 layer" if changed == 1 else f"{changed} layers"
    gain = f"from {mean(before):.1f} to {mean(best):.1f} dB"
    return small, f"{count} solved again in sequence: outputs {gain} on samples held back"


def _some(dataset: Dataset) -> Dataset | None:
    """Data that is not of the head, spread as far as it is at hand; None where there is none, or for one pass alone."""
    head, whole = set(dataset.head_numbers), len(dataset)
    if dataset.is_one_shot or (whole and len(head) >= whole):
        return None
    if not dataset.is_at_hand:
        return dataset.without(head)
    size = max(1, SampleAxes.of(dataset.graph).size(dataset.head[:1]))
    wanted = set(dataset.spread(min(whole, len(head) + -(-_SAMPLES // size)))) - head
    chosen = wanted or set(range(whole)) - head
    return dataset.without(set(range(whole)) - chosen)


class _OtherOrderError(Exception):
    """A pass began with another batch than the first one."""


def _batches(rest: Dataset) -> Iterator[Batch]:
    """The first samples of the data that is learned from, the same in each pass."""
    axes, seen = SampleAxes.of(rest.graph), 0
    for batch in rest:
        if seen == 0 and not rest.begins_with(batch):
            raise _OtherOrderError
        yield batch
        seen += axes.size([batch])
        if seen >= _SAMPLES:
            return


def _layers(whole: Graph, small: Graph, kept: Kept) -> list[_Layer]:
    """Those behind what has changed whose outputs can be compared, in execution order."""
    found, touched = [], set()
    for node in small.nodes:
        weight = small.weights.get(node.input(1) or "")
        old = whole.weights.get(node.input(1) or "")
        is_changed = weight is not None and (old is None or old.shape != weight.shape)
        if not is_changed and not any(name in touched for name in node.inputs):
            continue
        touched |= set(node.outputs)
        layer = _layer(whole, small, node, kept)
        if layer is not None:
            found.append(layer)
    share = min(1.0, _ALL_BYTES / max(1, sum(4 * each.limit * each.outputs.channels for each in found)))
    return [
        _Layer(each.node, each.inputs, each.outputs, each.channels, max(1, int(each.limit * share))) for each in found
    ]


def _layer(whole: Graph, small: Graph, node: Node, kept: Kept) -> _Layer | None:
    tensor = node.outputs[0]
    if node.op not in ("Conv", "Linear") or weight_obstacle(small, node) or tensor not in whole.tensors:
        return None
    producer = whole.producer(tensor)
    weight = None if producer is None else whole.weights.get(producer.input(1) or "")
    if producer is None or producer.op != node.op or weight is None:
        return None
    shape = small.weights[node.inputs[1] or ""].shape
    channels = kept.get(tensor)
    if shape[0] != (weight.shape[0] if channels is None else len(channels)):
        return None
    try:
        inputs = Patches.of(small, node)
    except ModelError:
        return None
    if inputs.columns > MOST_MOMENTS:
        return None
    ones = (1,) * len(inputs.kernel)
    outputs = Patches(node.op, (1, weight.shape[0], *ones), 1, ones, ones, (0,) * (2 * len(ones)))
    return _Layer(node, inputs, outputs, channels, row_limit(inputs))


def _spread(layers: Sequence[_Layer]) -> list[_Layer]:
    """As many layers as there are passes, the last one among them."""
    places = np.linspace(len(layers) - 1, 0, min(_PASSES, len(layers))).round().astype(np.int64)
    return [layers[place] for place in places[::-1]]


def _solved(small: CheckedModel, layer: _Layer, inputs: Rows, target: Rows) -> CheckedModel | None:
    """A copy whose layer makes up for what it can; None where that is nothing."""
    try:
        x, wanted = paired_values(inputs, target)
    except DataError:  # a layer that no data reaches, or whose outputs are at other positions than they were
        return None
    assert wanted is not None
    wanted = wanted[:, 0] if layer.channels is None else wanted[:, 0, list(layer.channels)]
    copy = small.copy()
    node = copy.graph.node(layer.node.name)
    draft = Draft(copy.graph, copy.weight)
    name, has_bias = node.inputs[1] or "", not bias_obstacle(copy.graph, node)
    weight = copy.weight(name)
    if is_sparse(weight):  # zeros that are there on purpose stay
        return None
    matrix = weight.astype(np.float64).reshape(groups_of(node), -1, x.shape[2])
    bias = bias_of(draft, node, weight.shape[0]).astype(np.float64)
    change = corrected(x, _left(x, matrix, bias, wanted), inputs.stamps[:, 0] % 2 == 0, has_bias)
    if change is None:
        return None
    draft.apply(SetWeights({name: (matrix + change.weight).reshape(weight.shape).astype(np.float32)}))
    if has_bias:
        set_bias(draft, node, bias + change.bias.reshape(-1))
    copy.edit(draft)
    return copy


def _left(
    x: NDArray[np.float32], matrix: NDArray[np.float64], bias: NDArray[np.float64], wanted: NDArray[np.float32]
) -> NDArray[np.float64]:
    """What outputs lack to those that are wanted, (rows, groups, outputs)."""
    made = x.transpose(1, 0, 2) @ matrix.swapaxes(1, 2)
    return np.asarray((wanted - bias).reshape(len(x), len(matrix), -1) - made.transpose(1, 0, 2))
