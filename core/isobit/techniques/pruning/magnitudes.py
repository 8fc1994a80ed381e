"""Magnitudes: how much weight a channel has, where no data says what it is worth."""

from __future__ import annotations

import numpy as np

from isobit.backend.checked_model import CheckedModel
from isobit.edits.slicing.channel_relations import Slot
from isobit.techniques.pruning.channel_groups import ChannelGroup
from isobit.techniques.pruning.elimination import Floats


def magnitudes(model: CheckedModel, group: ChannelGroup) -> Floats:
    """By channel its share of the squares of all weights of the group, each layer's shares summing up to one.

    Source: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, who rank filters by their norm.
    """
    shares = np.zeros(group.count)
    for slot, numbers in _weights(model, group).items():
        squares = np.square(model.weight(slot.name).astype(np.float64))
        by_index = np.moveaxis(squares, slot.axis, 0).reshape(len(numbers), -1).sum(1)
        own = np.bincount(numbers[numbers >= 0], by_index[numbers >= 0], group.count)
        shares += own / max(own.sum(), float(np.finfo(np.float64).tiny))
    return np.asarray(shares / max(shares.sum(), float(np.finfo(np.float64).tiny)))


def _weights(model: CheckedModel, group: ChannelGroup) -> dict[Slot, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """The axes of layers' weights among the slots of a group."""
    weights = {model.graph.node(name).input(1) for name in (*group.producers, *group.readers)}
    return {slot: numbers for slot, numbers in group.numbers.items() if slot.name in weights}
