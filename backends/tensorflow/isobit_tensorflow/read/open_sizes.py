"""Sizes that a model leaves open, while a layer that computes with them (``ops.shape(x)[0]``) is opened.

Keras has None for such a size, which a layer's own code cannot multiply or broadcast to. The layer is called with large
prime numbers in their place: where one turns up in a shape, the open size was meant. It is read with two sets of such
numbers: what differs between the two follows from an open size in a way that no operation says.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isobit.errors import ModelError
from isobit.graph import View
from isobit_tensorflow.read.emitter import Emitter, Value
from isobit_tensorflow.read.parameters import Computed, VariableView

#: One for each axis, or for each open size; no layer has so many features by chance. Readings take turns.
_PRIMES = (
    (521, 523, 541, 547, 557, 563, 569, 571, 577, 587, 593, 599),
    (601, 607, 613, 617, 619, 631, 641, 643, 647, 653, 659, 661),
)

#: What operations call a shape, or a count, that may follow from one.
_SETTINGS = ("newshape", "shape", "repeats")


class OpenSizeError(ModelError):
    """A layer computes with an open size what no operation of the neutral graph says."""


@dataclass(frozen=True, eq=False)
class OpenSizes:
    """What stands for the open size of each axis, and a tensor that has it there."""

    places: Mapping[int, tuple[Value, int]]
    numbers: Mapping[tuple[str, bool, int], int]

    @classmethod
    def of(cls, values: Iterable[Value], reading: int, *, equal: bool) -> OpenSizes:
        """Of the tensors that a layer is called with; `reading` 0 and 1 have other numbers for the same sizes.

        Sizes of the first axis, the batch, are equal; those of another axis are where `equal` says so.
        """
        places: dict[int, tuple[Value, int]] = {}
        numbers: dict[tuple[str, bool, int], int] = {}
        taken: dict[Any, int] = {}
        for value in values:
            for axis, size in enumerate(value.shape):
                key = axis if equal or not axis else (value.name, axis)
                if size is None and (key in taken or len(taken) < len(_PRIMES[reading])):
                    number = taken.setdefault(key, _PRIMES[reading][len(taken)])
                    numbers[value.name, value.last, axis] = number
                    places.setdefault(number, (value, axis))
        return cls(places, numbers)

    @property
    def are_shared(self) -> bool:
        """Whether one number stands for sizes of several tensors, the batch aside."""
        inner = [number for (_, _, axis), number in self.numbers.items() if axis]
        return len(set(inner)) < len(inner)

    def filled(self, value: Value, of: Value | None = None) -> tuple[int | None, ...]:
        """The shape of a tensor (a mask `of` another one) with numbers for its open sizes."""
        owner = value if of is None else of
        return tuple(
            self.numbers.get((owner.name, owner.last, axis)) if size is None else size
            for axis, size in enumerate(value.shape)
        )

    def among(self, values: Mapping[int, Value], tensors: Iterable[Any]) -> Mapping[int, tuple[Any, int]]:
        """The tensor and the axis of each open size; `values` are those that the tensors stand for, by their ids."""
        symbolic = {values[id(tensor)].name: tensor for tensor in tensors if id(tensor) in values}
        found = ((size, symbolic.get(value.name), axis) for size, (value, axis) in self.places.items())
        return {size: (tensor, axis) for size, tensor, axis in found if tensor is not None}

    def is_open(self, size: Any) -> bool:
        """Whether a size follows from an open one."""
        return isinstance(size, int | np.integer) and int(size) > 0 and any(int(size) % n == 0 for n in self.places)

    def opened(self, operation: Any) -> Any:
        """An operation of Keras with None where its settings hold what stands for an open size."""
        changed = {
            name: tuple(None if self.is_open(size) else size for size in sizes)
            for name in _SETTINGS
            if isinstance(sizes := getattr(operation, name, None), list | tuple) and any(map(self.is_open, sizes))
        }
        if not changed:
            return operation
        opened = copy.copy(operation)
        for name, sizes in changed.items():
            object.__setattr__(opened, name, sizes)
        return opened

    def settle(self, emitter: Emitter, name: str, parameter: Any) -> Any:
        """A constant that is repeated to an open size: once, and expanded. Raises ModelError for one that changes."""
        shape = tuple(getattr(parameter, "shape", ()))
        axes = [axis for axis, size in enumerate(shape) if self.is_open(size)]
        if not axes:
            return parameter
        if any(shape[axis] not in self.places for axis in axes) or not isinstance(parameter, Computed):
            raise ModelError(f"{name!r} computes a constant whose shape follows from the batch, {shape}")
        array = parameter.array
        for axis in axes:
            first = array.take([0], axis)
            if not np.array_equal(array, np.broadcast_to(first, array.shape), equal_nan=array.dtype.kind == "f"):
                raise ModelError(f"{name!r} computes a constant that follows from the batch, of shape {shape}")
            array = first
        once = _as_variable(Computed(array, parameter.variables))
        weight = emitter.weight(once, (), f"{name}/repeated")
        condition = self._condition(emitter, name, shape, axes)
        open_shape = tuple(None if axis in axes else size for axis, size in enumerate(shape))
        return emitter.emit("Where", f"{name}/expanded", [condition, weight, weight], open_shape, str(array.dtype))

    def _condition(self, emitter: Emitter, name: str, shape: Sequence[int], axes: Sequence[int]) -> Value:
        """Truth everywhere, as long as the open axes and 1 elsewhere: a choice by it repeats what is chosen."""
        conditions = []
        for axis in axes:
            value, place = self.places[shape[axis]]
            line = emitter.line(f"{name}/line{axis}", emitter.plain(value), place)
            target = tuple(-1 if other == axis else 1 for other in range(len(shape)))
            open_shape = tuple(None if other == axis else 1 for other in range(len(shape)))
            line = emitter.emit("Reshape", f"{name}/axis{axis}", [line], open_shape, value.dtype, shape=target)
            conditions.append(emitter.truths(name, line, str(axis)))
        both = conditions[0]
        for condition in conditions[1:]:
            sizes = tuple(None if None in pair else 1 for pair in zip(both.shape, condition.shape, strict=True))
            both = emitter.emit("And", f"{name}/there", [both, condition], sizes, "bool")
        return both


def _as_variable(parameter: Computed) -> Any:
    """The variable itself, where what was computed is nothing but its values."""
    if len(parameter.variables) != 1:
        return parameter
    (variable,) = parameter.variables
    values = np.asarray(variable.numpy())
    if values.size != parameter.array.size or not np.array_equal(values.reshape(parameter.shape), parameter.array):
        return parameter
    return VariableView(variable, (View(parameter.shape, values.shape),), parameter.shape, parameter.dtype)
