"""The weights of a user's float model for a simulator that was edited since."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from isobit.edits import ReadWeight
from isobit.errors import ModelError
from isobit.graph import WeightInfo, to_canonical, to_native

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Place:
    """A variable of the user's model: the name that the graph has for it, and its shape.

    Where the graph reads it nowhere it has no name but a `value`, of which the layers have computed what the graph has.
    """

    name: str | None
    shape: tuple[int, ...]
    value: Array | None


def order_of(model: keras.Model, names: Mapping[int, str]) -> tuple[Place, ...]:
    """The variables of a model in its order; `names` are those that the graph has, by the id of the variable."""
    return tuple(_place(variable, names.get(id(variable))) for variable in model.weights)


def _place(variable: keras.Variable, name: str | None) -> Place:
    return Place(name, tuple(variable.shape), np.array(variable.numpy()) if name is None else None)


@dataclass(frozen=True, eq=False)
class FloatWeights:
    """How weights of the user's model become those of now: `fold` is the core's, `order` is that of its variables.

    `opened` and `now` are the constants of the graph before and after the edits.
    """

    fold: Callable[[ReadWeight], Mapping[str, Array]]
    order: Sequence[Place]
    opened: Mapping[str, WeightInfo]
    now: Mapping[str, WeightInfo]

    def folded(self, model: keras.Model, parameters: Mapping[str, keras.Variable]) -> dict[str, Array]:
        """Values of the `parameters` of now by name. Raises ModelError for another model, and what `fold` raises."""
        given = [tuple(variable.shape) for variable in model.weights]
        if given != [place.shape for place in self.order]:
            raise ModelError(
                f"{model.name!r} is not built as the model that was opened: it has {len(given)} weights, of other "
                f"shapes or in another order than the {len(self.order)} there"
            )
        values: dict[str, Array] = {}
        for place, variable in zip(self.order, model.weights, strict=True):
            value = np.array(variable.numpy())
            if place.name is not None:
                values[place.name] = value
            elif place.value is None or not np.array_equal(value, place.value):
                raise ModelError(
                    f"{variable.path!r} has another value than in the model that was opened, and is no weight here, "
                    f"what the layers compute of it is: open {model.name!r} anew"
                )

        def read(name: str) -> Array:
            info = self.opened[name]
            source = info.source or name
            value = values[source] if source in values else parameters[source].numpy()
            return np.array(to_canonical(value, info.layout))

        changed = {source: value for source, value in values.items() if source in parameters}
        for name, value in self.fold(read).items():
            info = self.now.get(name)
            if info is not None:
                source = info.source or name
                base = changed.get(source)
                changed[source] = to_native(
                    np.asarray(value), info.layout, parameters[source].numpy() if base is None else base
                )
        return changed
