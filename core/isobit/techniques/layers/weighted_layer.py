"""Weighted layers as techniques see them: whether one may be changed, and how factors and biases go into it.

Weights are canonical: (out, in/groups, *kernel); output channel o of a grouped layer reads the inputs of its group.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from isobit.edits.draft import Draft
from isobit.edits.edit import AddBias, SetWeights, Unshare
from isobit.graph.adapters import adapter_of
from isobit.graph.graph import Graph, Node

LAYERS = frozenset({"Conv", "ConvTranspose", "Linear"})

Floats = NDArray[np.float64]
Vector = NDArray[np.float32]


def weight_obstacle(graph: Graph, layer: Node) -> str:
    """Why the weight of a layer cannot be changed for this layer alone, or an empty text."""
    weight = layer.input(1)
    if weight is None or weight not in graph.weights:
        return f"the weight of {layer.name} is computed"
    if graph.weights[weight].dtype != "float32":
        return f"the weight of {layer.name} is {graph.weights[weight].dtype}"
    readers = graph.source_readers(weight)
    if len(readers) > 1:
        return f"the weight of {layer.name} is shared with {', '.join(sorted(readers - {layer.name}))}"
    return adapter_obstacle(graph, layer)


def adapter_obstacle(graph: Graph, layer: Node) -> str:
    """Why a layer of an adapter is left as it is, or an empty text: its weights are trained and exchanged on their own.

    With another base than the adapter was made for, nobody could load it.
    """
    adapter = adapter_of(graph, layer)
    return "" if adapter is None else f"{layer.name} is a part of the adapter beside {adapter.base.name}"


def bias_obstacle(graph: Graph, layer: Node) -> str:
    """Why a layer cannot get another bias, or an empty text; it may have none yet, or share it."""
    if layer.op not in LAYERS:
        return f"{layer.op} has no bias"
    bias = layer.input(2)
    if bias is not None and bias not in graph.weights:
        return f"the bias of {layer.name} is computed"
    return adapter_obstacle(graph, layer)


def groups_of(layer: Node) -> int:
    """The number of groups; 1 for Linear."""
    return int(layer.attributes.get("group", 1))


def channel_axis(graph: Graph, layer: Node) -> int:
    """The axis of the output channels of a layer."""
    return (graph.tensors[layer.outputs[0]].rank or 2) - 1 if layer.op == "Linear" else 1


def axis_behind(graph: Graph, view: Node, axis: int) -> int | None:
    """The axis that a Reshape or a Transpose makes of `axis` of its input; None where it breaks it up or joins it."""
    if view.op == "Transpose":
        return tuple(view.attributes["perm"]).index(axis) if "perm" in view.attributes else None
    before, after = (graph.tensors[name or ""].shape for name in (view.inputs[0], view.outputs[0]))
    if before is None or after is None:
        return None
    for index, size in enumerate(after):
        if size == before[axis] and (
            _without_ones(after[index + 1 :]) == _without_ones(before[axis + 1 :])
            or _without_ones(after[:index]) == _without_ones(before[:axis])
        ):
            return index
    return None


def _without_ones(sizes: Sequence[object]) -> list[object]:
    """The sizes that count; one that has no name and no number is like no other."""
    kept = [size for size in sizes if size != 1]
    return [object() if size is None else size for size in kept]


def bias_of(draft: Draft, layer: Node, channels: int) -> Vector:
    """The bias, zeros where there is none."""
    name = layer.input(2)
    return draft.value(name).astype(np.float32) if name is not None else np.zeros(channels, np.float32)


def set_bias(draft: Draft, layer: Node, value: NDArray[np.floating], *, compensates: bool = False) -> None:
    """Give a layer this bias, as a copy of its own where others read the old one; `compensates` as of `SetWeights`."""
    name = layer.input(2)
    value = np.asarray(value, np.float32)
    if name is None:
        draft.apply(AddBias(layer.name, value, compensates))
        return
    if len(draft.graph.uses(name)) > 1 or len(draft.graph.source_readers(name)) > 1:
        draft.apply(Unshare(name, layer.name))
        name = draft.graph.node(layer.name).inputs[2] or name
    draft.apply(SetWeights({name: value}, compensates))


def by_input(weight: NDArray[np.floating], groups: int, values: NDArray[np.floating]) -> NDArray[np.floating]:
    """One value an input channel, laid out to broadcast against the weight."""
    row = np.arange(weight.shape[0]) // (weight.shape[0] // groups)
    return np.asarray(values.reshape(groups, -1)[row].reshape(*weight.shape[:2], *(1,) * (weight.ndim - 2)))


def by_output(weight: NDArray[np.floating], values: NDArray[np.floating]) -> NDArray[np.floating]:
    """One value an output channel, laid out to broadcast against the weight."""
    return values.reshape(-1, *(1,) * (weight.ndim - 1))


def response(weight: NDArray[np.floating], layer: Node, values: Floats, sizes: Sequence[object] = ()) -> Floats:
    """The mean output for inputs that are constant, one value a channel.

    A tap of a convolution that lies in the padding for some output positions counts for the others alone; `sizes` are
    those of the input's spatial axes. Without them, far from the borders. Each tap of a transposed convolution meets
    one in so many outputs as the strides say.
    """
    taps = weight.astype(np.float64) * by_input(weight, groups_of(layer), values)
    if layer.op == "Conv" and sizes and all(isinstance(size, int) for size in sizes):
        taps = taps * _coverage(layer, weight.shape[2:], [int(str(size)) for size in sizes])
    mean_output = taps.reshape(weight.shape[0], -1).sum(axis=1)
    if layer.op == "ConvTranspose":
        mean_output = mean_output / np.prod(layer.attributes.get("strides", (1,)))
    return np.asarray(mean_output, np.float64)


def _coverage(layer: Node, kernel: Sequence[int], sizes: Sequence[int]) -> Floats:
    """For each tap of a convolution, the share of output positions where it reads the input, not the padding."""
    count = len(kernel)
    strides, dilations = (layer.attributes.get(name, (1,) * count) for name in ("strides", "dilations"))
    pads = layer.attributes.get("pads", (0,) * (2 * count))
    share: Floats = np.ones((1,) * count)
    for axis, (taps, size) in enumerate(zip(kernel, sizes, strict=True)):
        padded = size + pads[axis] + pads[axis + count]
        outputs = np.arange((padded - (taps - 1) * dilations[axis] - 1) // strides[axis] + 1) * strides[axis]
        positions = outputs[:, None] + np.arange(taps) * dilations[axis] - pads[axis]
        inside = ((positions >= 0) & (positions < size)).mean(axis=0)
        share = share * inside.reshape(-1, *(1,) * (count - 1 - axis))
    return share


def input_ranges(weight: NDArray[np.floating], groups: int) -> Floats:
    """The largest absolute weight that reads each input channel."""
    matrix = np.abs(weight).reshape(*weight.shape[:2], -1).max(axis=2, initial=0.0)
    return np.asarray(matrix.reshape(groups, -1, weight.shape[1]).max(axis=1, initial=0.0).reshape(-1), np.float64)


def summed_by_input(values: NDArray[np.floating], groups: int) -> Floats:
    """What is laid out as a weight, summed over all that each input channel meets."""
    taps = values.reshape(*values.shape[:2], -1).sum(axis=2, dtype=np.float64)
    return np.asarray(taps.reshape(groups, -1, values.shape[1]).sum(axis=1).reshape(-1))
