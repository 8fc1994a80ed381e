"""What goes wrong in `fit` without a word: a loss of NaN, named with its step and the first weight that it reached."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from isobit.errors import ModelError
from isobit_tensorflow.simulate.variables import value_of


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
        raise ModelError(
            f"step {self._steps} of training: the loss is NaN, and has reached {where}. Look at the loss and the "
            "batch, and lower the learning rate; a checkpoint from before it goes on"
        )


def watched(callbacks: Any) -> Any:
    """The callbacks of a `fit`, whatever `fit` takes as such, with a `NanWatch` among them."""
    if isinstance(callbacks, keras.callbacks.CallbackList):  # which is a callback itself, and stays as it is
        return keras.callbacks.CallbackList([callbacks, NanWatch()], model=callbacks.model)
    return [*keras.tree.flatten(callbacks or []), NanWatch()]


def _has_nan(variable: keras.Variable) -> bool:
    return keras.backend.is_float_dtype(variable.dtype) and bool(np.isnan(value_of(variable)).any())
