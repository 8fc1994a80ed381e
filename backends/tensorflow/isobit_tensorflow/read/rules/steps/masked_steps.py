"""Sequences with masked steps: a recurrent layer passes over them, so it runs over the others, moved to the front.

What the layer gives for a masked step is what it gave for the step before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from keras import ops

from isobit_tensorflow.read.call import Call
from isobit_tensorflow.read.emitter import Value


@dataclass(frozen=True, eq=False)
class Steps:
    """How the steps of a sequence move: `order` is the step that comes at each place, `place` the place of each step.

    Both are (batch, steps). `place` counts from 1, and is 0 for masked steps in front of all others; `backwards`, the
    sequence is turned first.
    """

    call: Call
    name: str
    mask: Value
    order: Value
    place: Value
    backwards: bool
    zeros: bool

    def packed(self, x: Value) -> Value:
        """(batch, steps, features) with the steps that count in front."""
        return self._open(_packed, "packed", x, self.order, backwards=self.backwards)

    def spread(self, y: Value) -> Value:
        """The results of packed steps at the places of theirs."""
        return self._open(_spread, "spread", y, self.place, self.mask, zeros=self.zeros)

    def last(self, y: Value, initial: Value | None) -> Value:
        """The result of the last step that counts; the initial state, or 0, where none does."""
        arguments = (y, self.place, self.mask) if initial is None else (y, self.place, self.mask, initial)
        return self._open(_last, "state", *arguments, zeros=self.zeros)

    def _open(self, function: Any, part: str, *arguments: Value, **settings: bool) -> Value:
        name = f"{self.name}/{part}"
        result: Value = self.call.reader.open(
            lambda *tensors: function(*tensors, **settings), name, arguments, {}, self.call.operation
        )
        return result


def steps_of(call: Call, name: str, mask: Value, backwards: bool, zeros: bool) -> Steps:
    """The steps of a mask; where `zeros`, the layer gives 0 for masked steps."""
    made = call.reader.open(
        lambda tensor: _steps(tensor, backwards=backwards), f"{name}/steps", (mask,), {}, call.operation
    )
    return Steps(call, name, made[0], made[1], made[2], backwards, zeros)


def _steps(mask: Any, *, backwards: bool) -> tuple[Any, Any, Any]:
    counts = ops.cast(mask, "int32")
    if backwards:
        counts = ops.flip(counts, axis=1)
    place = ops.cumsum(counts, axis=1)
    numbers = ops.cumsum(counts * 0 + 1, axis=1)  # 1, 2, 3 and so on, however many steps there are
    is_there = ops.equal(ops.expand_dims(numbers, 2), ops.expand_dims(place * counts, 1))
    order = ops.sum(ops.where(is_there, ops.expand_dims(numbers - 1, 1), 0), axis=2)
    return counts, order, place


def _packed(x: Any, order: Any, *, backwards: bool) -> Any:
    if backwards:
        x = ops.flip(x, axis=1)
    return _taken(x, order)


def _spread(y: Any, place: Any, counts: Any, *, zeros: bool) -> Any:
    kept = counts > 0 if zeros else place > 0
    return ops.where(ops.expand_dims(kept, 2), _taken(y, ops.maximum(place - 1, 0)), 0.0)


def _last(y: Any, place: Any, counts: Any, initial: Any = 0.0, *, zeros: bool) -> Any:
    total = ops.max(place, axis=1, keepdims=True)
    state = ops.squeeze(_taken(y, ops.maximum(total - 1, 0)), 1)
    state = ops.where(total > 0, state, initial)
    return ops.where(counts[:, -1:] > 0, state, 0.0) if zeros else state


def _taken(x: Any, steps: Any) -> Any:
    """The steps of these numbers."""
    indices = ops.expand_dims(steps, 2)
    return ops.take_along_axis(x, ops.broadcast_to(indices, (*steps.shape, x.shape[2])), axis=1)
