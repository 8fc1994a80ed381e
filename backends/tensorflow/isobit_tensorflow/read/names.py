"""Names of layers, operations and variables that do not depend on what was built before in the process.

Keras numbers what has no name of its own by counters of the whole process: the same model is ``dense``, ``dense_1`` at
first and ``dense_2``, ``dense_3`` when it is built again. Here the numbers count within the model alone, in the order
in which its parts were made: what a fresh process gives. The path of a variable depends in Keras on who built its layer
(a call, `build`, `load_model`, `clone_model`); here it is the layers that hold it, without the models around them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras

#: What Bidirectional puts in front of the names of its two layers.
_PREFIXES = ("", "forward_", "backward_")

#: Names of inputs without one of their own; the second is that of `keras.models.clone_model`.
_INPUT = re.compile(r"(input_layer|keras_tensor)(_[1-9][0-9]*)?")

#: How many names a note shows.
_SHOWN = 8


class StableNames:
    """The name in the graph of each layer, operation and variable of a model."""

    def __init__(self, names: Mapping[str, str], parts: Mapping[int, str], paths: Mapping[int, str]) -> None:
        """`names` are stable by Keras' own; `parts` are those of layers and operations, `paths` of variables, by id."""
        self._names, self._parts, self._paths = dict(names), dict(parts), dict(paths)

    @classmethod
    def of(cls, model: keras.Model) -> StableNames:
        """Of a model, what is nested in it, and their variables."""
        parts = list(_parts(model))
        kinds = [(part.name, type(part)) for part in parts if part is not model]
        kinds += [(variable.name, keras.Variable) for variable in model.variables]
        names = {**_renumbered(kinds), **_inputs(model)}
        paths: dict[int, str] = {}
        _add_paths(model, (), names, paths)
        return cls(names, {id(part): names.get(part.name, part.name) for part in parts}, paths)

    def within(self, operations: Iterable[Any]) -> StableNames:
        """With operations that a layer has made just now, while it was called: they are numbered within the layer."""
        made = [operation for operation in operations if id(operation) not in self._parts]
        names = _renumbered((operation.name, type(operation)) for operation in made)
        parts = {id(operation): names.get(operation.name, operation.name) for operation in made}
        return StableNames({**names, **self._names}, {**self._parts, **parts}, self._paths)

    def of_part(self, part: Any) -> str:
        """The stable name of a layer or an operation."""
        return self._parts.get(id(part)) or self._names.get(part.name, part.name)

    def of_variable(self, variable: keras.Variable) -> str:
        """The stable path of a variable."""
        path = self._paths.get(id(variable))
        return path or "/".join(self._names.get(part, part) for part in str(variable.path).split("/"))

    def notes(self) -> list[str]:
        """One line where the graph has other names than the layers of the model."""
        changed = [f"{name} is {stable}" for name, stable in self._names.items() if name != stable]
        if not changed:
            return []
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        return [f"names that Keras numbered begin at 0 here: {', '.join(changed[:_SHOWN])}{more}"]


def _parts(model: keras.Model) -> Iterator[Any]:
    """A model, every layer at any depth of it, and the operations between them."""
    for layer in model._flatten_layers():
        if not isinstance(layer, keras.layers.InputLayer):
            yield layer
        for operation in getattr(layer, "operations", ()) if isinstance(layer, keras.Model) else ():
            if not isinstance(operation, keras.layers.Layer):
                yield operation


def _add_paths(layer: Any, scope: tuple[str, ...], names: Mapping[str, str], paths: dict[int, str]) -> None:
    """The variables of a layer and of those that it holds."""
    if not isinstance(layer, keras.Model):
        scope = (*scope, names.get(layer.name, layer.name))
    for variable in (*layer._trainable_variables, *layer._non_trainable_variables):
        path = "/".join((*scope, names.get(variable.name, variable.name)))
        by_hand = str(variable.path).split("/")[-1] != variable.name  # Keras' own paths end with the name
        paths.setdefault(id(variable), str(variable.path) if by_hand else path)
    for inner in layer._flatten_layers(include_self=False, recursive=False):
        _add_paths(inner, scope, names, paths)


def _renumbered(parts: Iterable[tuple[str, type]]) -> dict[str, str]:
    """New names by old: those that a class gives are numbered from 0 on, in the order of the numbers they have."""
    numbers: dict[str, dict[int, str]] = {}
    for name, kind in parts:
        match = re.fullmatch(f"((?:{'|'.join(_PREFIXES)}){_given_name(kind)})(?:_([1-9][0-9]*))?", name)
        if match:
            numbers.setdefault(match[1], {})[int(match[2] or 0)] = name
    return {
        named[number]: f"{stem}_{place}" if place else stem
        for stem, named in numbers.items()
        for place, number in enumerate(sorted(named))
    }


def _inputs(model: keras.Model) -> dict[str, str]:
    """New names by old of the model's own inputs, in the order in which it takes them."""
    found = [tensor._keras_history.operation.name for tensor in model.inputs]
    numbered = [name for name in dict.fromkeys(found) if _INPUT.fullmatch(name)]
    return {name: f"input_layer_{place}" if place else "input_layer" for place, name in enumerate(numbered)}


def _given_name(kind: type) -> str:
    """What Keras calls an instance of a class that gets no name, without the number."""
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", kind.__name__))
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
