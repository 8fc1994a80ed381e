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

#: The name that the graph has for a variable of the user's model, None where it reads it nowhere, and its shape.
Place = tuple[str | None, tuple[int, ...]]


def order_of(model: keras.Model, names: Mapping[int, str]) -> tuple[Place, ...]:
    """The variables of a model in its order; `names` are those that the graph has, by the id of the variable."""
    return tuple((names.get(id(variable)), tuple(variable.shape)) for variable in model.weights)


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
        given = tuple((None, tuple(variable.shape)) for variable in model.weights)
        if [shape for _, shape in given] != [shape for _, shape in self.order]:
            raise ModelError(
                f"{model.name!r} is not built as the model that was opened: it has {len(given)} weights, of other "
                f"shapes or in another order than the {len(self.order)} there"
            )
        values: dict[str, Array] = {}
        for (name, _), variable in zip(self.order, model.weights, strict=True):
            if name is None:
                raise ModelError(
                    f"{variable.path!r} is no weight here, what the layers compute of it is: open {model.name!r} anew"
                )
            values[name] = np.array(variable.numpy())

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
