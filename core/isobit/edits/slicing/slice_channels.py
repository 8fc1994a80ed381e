"""The lowering of slices: every constant, every shape and every attribute that their channels reach."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from isobit.edits.edit import Slice
from isobit.edits.slicing.channel_coupling import Coupled, Coupling
from isobit.edits.slicing.channel_relations import Indices, Slot
from isobit.edits.slicing.counted_channels import changed_attributes
from isobit.edits.slicing.layer_channels import unrolls_groups
from isobit.edits.workspace import Workspace
from isobit.errors import EditError
from isobit.graph.graph import Graph
from isobit.graph.layout import Layout, conv_transpose_layout, resized


def slice_channels(workspace: Workspace, slices: Iterable[Slice]) -> None:
    """Remove channels of tensors at once, and what goes with them. EditError names what blocks it: nothing changes."""
    coupling = Coupling(workspace.graph)
    _write(workspace, coupling, kept_channels(coupling, *slices))


def kept_channels(coupling: Coupling, *slices: Slice) -> dict[Slot, Indices]:
    """By axis that gets shorter, the indices that no slice drops. Raises EditError that names what blocks it."""
    keeps = [_checked(coupling.graph, edit) for edit in slices]
    coupled = coupling.of(slot for slot, _ in keeps)
    gone = np.asarray([number for slot, keep in keeps for number in _gone(coupled, slot, keep)], np.int64)
    kept = {}
    for slot, of_slot in coupled.numbers.items():
        stays = np.flatnonzero(~np.isin(of_slot, gone))
        if not stays.size:
            raise EditError(f"nothing would be left of axis {slot.axis} of {slot.name!r}")
        if stays.size < of_slot.size:
            kept[slot] = stays
    return kept


def _checked(graph: Graph, edit: Slice) -> tuple[Slot, Indices]:
    """The axis that a slice names, and what it keeps of it."""
    info = graph.tensors.get(edit.tensor)
    if info is None or info.shape is None or info.channel_axis is None:
        raise EditError(f"tensor {edit.tensor!r} is not in the graph, or its channels are unknown")
    count = info.shape[info.channel_axis]
    keep = np.asarray(sorted(set(edit.keep)), np.int64)
    if not isinstance(count, int) or keep.size == 0 or keep[0] < 0 or keep[-1] >= count:
        raise EditError(f"channels to keep of {edit.tensor!r} must be some of its {count} channels, not {edit.keep}")
    return Slot(edit.tensor, info.channel_axis), keep


def _gone(coupled: Coupled, seed: Slot, keep: Indices) -> list[int]:
    """The numbers of what goes where these indices of a slot are kept."""
    numbers = coupled.numbers[seed]
    gone = np.setdiff1d(numbers, numbers[keep])
    half = np.setdiff1d(np.delete(numbers, keep), gone)
    if half.size:
        together = np.flatnonzero(np.isin(numbers, half)).tolist()
        raise EditError(f"channels {together} of {seed.name!r} go together or not at all, and not all of them are kept")
    blocked = next((number for number in gone.tolist() if number in coupled.fixed), None)
    if blocked is not None:
        raise EditError(coupled.fixed[blocked])
    return [int(number) for number in gone]


def _write(workspace: Workspace, coupling: Coupling, kept: dict[Slot, Indices]) -> None:
    graph = workspace.graph
    names = {slot.name for slot in kept}

    def left(slot: Slot) -> Indices:
        return kept[slot] if slot in kept else np.arange(coupling.sizes.size(slot) or 0)

    touched = [node for node in graph.nodes if not names.isdisjoint((*node.inputs, *node.outputs))]
    changed = {node.name: changed_attributes(coupling.sizes, node, left) for node in touched}
    for name in [name for name in graph.weights if name in names]:
        value = workspace.value(name)
        for slot, stays in kept.items():
            if slot.name == name:
                value = np.take(value, stays, slot.axis)
        workspace.set_value(name, value, layout=_layout(graph, name, value.shape))
    for name, attributes in changed.items():
        if attributes is not None:
            workspace.resize_node(workspace.graph.node(name), attributes)
    tensors = dict(workspace.graph.tensors)
    for slot, stays in kept.items():
        info = tensors.get(slot.name)
        if info is not None and info.shape is not None:
            shape = (*info.shape[: slot.axis], len(stays), *info.shape[slot.axis + 1 :])
            tensors[slot.name] = replace(info, shape=shape)
    workspace.graph = replace(workspace.graph, tensors=tensors)


def _layout(graph: Graph, name: str, shape: tuple[int, ...]) -> Layout:
    """The layout of a constant of fewer channels.

    That of a transposed convolution in groups unrolls them, and only the layer says whether there are fewer groups, as
    in depthwise ones, or smaller ones.
    """
    layout = graph.weights[name].layout
    for use in graph.uses(name) if layout else ():
        if use.index == 1 and unrolls_groups(graph, use.node):
            groups = int(use.node.attributes["group"])
            if graph.weights[name].shape[1] == 1:
                groups = groups * shape[0] // graph.weights[name].shape[0]
            return conv_transpose_layout((shape[1] * groups, shape[0] // groups, *shape[2:]), groups)
    return resized(layout, shape)
