"""A state_dict of the user's float module for a simulator that was edited since: as the simulator's own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from isobit.edits import ReadWeight
from isobit.errors import ModelError
from isobit.graph import WeightInfo, to_canonical, to_native
from isobit_torch.program.convert import to_array, to_tensor
from isobit_torch.program.fx_nodes import attribute
from isobit_torch.translate.translate import Translation

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Place:
    """Where a constant of the graph is: at `path` in the module, or nowhere but in the code as `number`."""

    info: WeightInfo
    path: str
    number: Array | None = None


Places = Mapping[str, Place]


def places_of(translation: Translation) -> Places:
    """The constants of a graph, and where they are."""
    numbers, attributes = translation.numbers, translation.attributes
    places = {}
    for name, info in translation.graph.weights.items():
        source = info.source or name
        path = "" if source in numbers else str(attributes[source].target)
        places[name] = Place(info, path, numbers.get(source))
    return places


@dataclass(frozen=True, eq=False)
class FloatState:
    """How a state from before the edits becomes one of now: `fold` is the core's, the places are those of constants."""

    fold: Callable[[ReadWeight], Mapping[str, Array]]
    opened: Places
    now: Places

    def folded(
        self, root: nn.Module, state: Mapping[str, torch.Tensor], keys: Collection[str]
    ) -> dict[str, torch.Tensor]:
        """All tensors that the edits have made, or whose values they change, by their paths in the `root` of now.

        `keys` are those that a whole state has: where one is missing, what `root` holds there may be folded already.
        Raises ModelError where a tensor of the state is missing or of another shape, and what `fold` raises.
        """

        def read(name: str) -> Array:
            place = self.opened[name]
            if place.number is not None:
                return np.array(to_canonical(place.number, place.info.layout))
            value = state.get(place.path)
            if value is None:
                if place.path in keys:
                    raise ModelError(
                        f"the weights are from before folding, and {place.path!r} is missing among them: give the "
                        "whole state_dict() of the float module"
                    )
                value = attribute(root, place.path)  # a constant that no state_dict holds
            array = np.array(to_canonical(to_array(value), place.info.layout))
            if array.shape != tuple(place.info.shape):
                raise ModelError(
                    f"{place.path!r} has shape {tuple(value.shape)}, which is not that of the module that was opened"
                )
            return array

        tensors: dict[str, torch.Tensor] = {}
        for name, value in self.fold(read).items():
            place = self.now.get(name)
            if place is not None and place.path:
                old = attribute(root, place.path)
                whole = tensors.get(place.path, state.get(place.path, old))
                tensors[place.path] = to_tensor(to_native(value, place.info.layout, to_array(whole)), old)
        return tensors
