"""What goes wrong in training without a word: NaN, by step and name, and an optimizer without the grids.

`fit` has a callback that looks at the loss. A loop around a tape shows the simulator its passes alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from isobit.errors import ModelError
from isobit.graph import Tensor
from isobit.graph_backend import Tap
from isobit_tensorflow.kernels.operands import Operand
from isobit_tensorflow.simulate.variables import value_of

#: Runs a batch in inference, and tells of every tensor.
Run = Callable[[Callable[[Tap, Operand], None]], Any]

_ADVICE = "Look at the loss and the batch, and lower the learning rate; a checkpoint from before it goes on"


class NanWatch(keras.callbacks.Callback):  # type: ignore[misc]
    """Ends a `fit` whose loss is NaN with a ModelError."""

    def __init__(self) -> None:
        super().__init__()
        self._steps = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Look at the loss of a step."""
        self._steps += 1
        loss = (logs or {}).get("loss")
        if loss is None or not np.isnan(loss):
            return
        parameters = self.model.parameters
        reached = next((name for name, variable in parameters.items() if _has_nan(variable)), None)
        where = "no weight yet" if reached is None else f"weight {reached!r}"
        raise ModelError(f"step {self._steps} of training: the loss is NaN, and has reached {where}. {_ADVICE}")


def watched(callbacks: Any) -> Any:
    """The callbacks of a `fit`, whatever `fit` takes as such, with a `NanWatch` among them."""
    if isinstance(callbacks, keras.callbacks.CallbackList):  # which is a callback itself, and stays as it is
        return keras.callbacks.CallbackList([callbacks, NanWatch()], model=callbacks.model)
    return [*keras.tree.flatten(callbacks or []), NanWatch()]


def _has_nan(variable: keras.Variable) -> bool:
    return keras.backend.is_float_dtype(variable.dtype) and bool(np.isnan(value_of(variable)).any())


class PassWatch:
    """Looks at each pass of training in a loop of the user's own; `grids` are the variables of learned grids.

    In a function that TensorFlow has traced it can stop at NaN, and name what holds it, and do no more.
    """

    def __init__(self, parameters: Mapping[str, keras.Variable], grids: Sequence[keras.Variable]) -> None:
        trained = {name: variable for name, variable in parameters.items() if variable.trainable}
        self._parameters = parameters
        # a loss of NaN leaves no weight a number, so the smallest tells
        self._told_by = min(trained, key=lambda name: int(np.prod(trained[name].shape)), default=None)
        self._grids = list(grids) if trained else []
        self._passes = 0
        self._start: list[Any] | None = None  # values of that weight and of the grids at the first pass

    def before(self) -> None:
        """Warn once where a step has changed weights, and none of the grids that are learned."""
        if not self._grids or self._told_by is None or not tf.executing_eagerly():
            return
        weight = value_of(self._parameters[self._told_by])
        if self._start is None:
            self._start = [weight.copy(), *(value_of(grid).copy() for grid in self._grids)]
            return
        if np.array_equal(weight, self._start[0]):
            return
        moved = any(not np.array_equal(value_of(g), v) for g, v in zip(self._grids, self._start[1:], strict=True))
        self._grids = []
        if not moved:
            warnings.warn(
                "a step of training changed the weights, and no grid that is learned: take the gradients of "
                "sim.model.trainable_variables, which has sim.quantizer_parameters() among them, after trainable(), or "
                "say trainable('frozen')",
                UserWarning,
                stacklevel=2,
            )

    def after(
        self, inputs: Mapping[str, tf.Tensor], outputs: Mapping[str, tf.Tensor], run: Run
    ) -> dict[str, tf.Tensor]:
        """The outputs. Raises ModelError where one, an input or a weight has NaN, and stops a traced function there."""
        self._passes += 1
        looked_at = {f"input {name!r}": value for name, value in inputs.items()}
        if self._told_by is not None:
            looked_at[f"weight {self._told_by!r}"] = tf.convert_to_tensor(self._parameters[self._told_by])
        looked_at |= {f"output {name!r}": value for name, value in outputs.items()}
        looked_at = {name: value for name, value in looked_at.items() if value.dtype.is_floating}
        if not tf.executing_eagerly():
            return _stopped(outputs, looked_at)
        found = next((name for name, value in looked_at.items() if _is_nan(value)), None)
        if found is not None:
            if found.startswith("weight"):
                where = f"{found} holds NaN, so the step before had a loss or a gradient of NaN"
            else:
                where = f"{found if found.startswith('input') else _first(run) or found} holds NaN"
            raise ModelError(f"pass {self._passes} of training: {where}. {_ADVICE}")
        return dict(outputs)


def without_gradient(value: tf.Tensor, reason: str) -> tf.Tensor:
    """The value; who takes a gradient by it gets a ModelError."""

    def refused(*_: Any) -> Any:
        raise ModelError(reason)

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def passed(x: tf.Tensor) -> tuple[tf.Tensor, Callable[..., Any]]:
        return tf.identity(x), refused

    return passed(value)


def _is_nan(value: tf.Tensor) -> Any:
    return tf.reduce_any(tf.math.is_nan(value))


def _stopped(outputs: Mapping[str, tf.Tensor], looked_at: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """The outputs behind checks, in a traced function; XLA leaves them out."""
    told = {name.replace("'", ""): value for name, value in looked_at.items()}  # TensorFlow escapes quotes
    checks = [
        tf.debugging.Assert(~_is_nan(value), [f"isobit: in training {name} holds NaN. {_ADVICE}"])
        for name, value in told.items()
    ]
    with tf.control_dependencies([check for check in checks if check is not None]):
        return {name: tf.identity(value) for name, value in outputs.items()}


def _first(run: Run) -> str | None:
    """The first tensor of a pass that has NaN."""
    found: list[str] = []

    def tap(place: Tap, value: Operand) -> None:
        site, _ = place
        if not found and isinstance(site, Tensor) and value.tensor.dtype.is_floating and _is_nan(value.tensor):
            found.append(site.name)

    run(tap)
    return repr(found[0]) if found else None
