"""The float model as a teacher of its simulator, or of a smaller network that was made of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from isobit.backend.checked_model import CheckedModel
from isobit.backend.optional import Teaches
from isobit.errors import ModelError
from isobit.training.distillation import DistillationSettings


class Distill:
    """Makes losses that lead back to a float model; `sim.distillation` is one, and that of what `compress` returns."""

    def __init__(self, model: CheckedModel) -> None:
        self._model = model

    def __call__(
        self, temperature: float | None = None, *, outputs: str | Sequence[str] | None = None, weight: float = 1.0
    ) -> Any:
        """A function ``loss(outputs, *inputs)``: how far outputs are from those of the float model for these inputs.

        The teacher is the float model as it is now, without what makes up for quantization, so make it before training.
        It holds copies of the weights that train, and shares all others. `temperature` is for logits of classes;
        without it the difference is squared, relative to the teacher (`isobit.training.DistillationSettings`). In
        Keras ``.add_to(model)`` adds the loss to each pass of `fit`. Raises FormatError, and ModelError where the
        backend does not train.
        """
        settings = DistillationSettings(temperature, outputs, weight)
        model = self._model
        if not isinstance(model.inner, Teaches):
            raise ModelError(f"a model of the {model.backend} backend does not train: open the PyTorch or Keras model")
        graph = model.graph
        settings.chosen([name for name, tensor in graph.outputs.items() if graph.is_float(tensor)])
        there = {name: done for name, done in model.compensations.items() if name in graph.weights}
        return model.inner.teacher(settings, {name: done.without(model.weight(name)) for name, done in there.items()})
