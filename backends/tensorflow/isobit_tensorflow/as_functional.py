"""A model whose call is the user's own, as a functional model of one layer, which is then opened as layers are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from isobit.data import is_array, to_numpy
from isobit.errors import ModelError

#: How a user makes such a model functional.
_BY_HAND = "x = keras.Input(shape=...); model = keras.Model(x, model(x))"


def as_functional(model: keras.Model, example: Any) -> keras.Model:
    """``keras.Model(x, model(x))``, where `x` has the structure, sizes and types of what the model takes.

    That is what a subclass of a functional model says itself, or else the example batch, as ``fit`` takes one: what
    stands behind the first element of a tuple is labels and sample weights. The batch is open, other sizes are fixed.
    Raises ModelError where the model is not built, there is no example, or the call cannot be made symbolically.
    """
    kind = f"{model.name!r} is a subclassed model ({type(model).__name__})"
    if not model.built:
        raise ModelError(
            f"{kind} that was never called, so it has no weights yet: call it on a batch and load or train its weights"
        )
    inputs = _declared(model)
    if inputs is None:
        if example is None:
            raise ModelError(
                f"{kind}, which does not say what it takes: pass example_inputs, one batch of its inputs, or make it "
                f"functional: {_BY_HAND}"
            )
        inputs = _like(example[0] if isinstance(example, tuple) else example, ())
    try:
        outputs = model(inputs)
        return keras.Model(inputs, outputs, name=model.name)
    except Exception as error:  # whatever the user's call raises
        said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        taken = keras.tree.map_structure(lambda tensor: tuple(tensor.shape), inputs)
        raise ModelError(
            f"{kind}, and Keras does not run it on inputs of the shapes {taken}: {said}. Its call is to use layers and "
            "keras.ops, without branches on values; an example has to be what `fit` takes"
        ) from error


def _declared(model: keras.Model) -> Any:
    """Fresh inputs like those that a model has which was made as a graph and has a call of its own."""
    if not getattr(model, "inputs", None):
        return None
    structure = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return keras.tree.map_structure(
        lambda tensor: keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor.name), structure
    )


def _like(example: Any, path: tuple[str, ...]) -> Any:
    """Inputs like the arrays of an example, named after the keys that lead to them."""
    if isinstance(example, Mapping):
        return {key: _like(value, (*path, str(key))) for key, value in example.items()}
    if isinstance(example, Sequence) and not is_array(example) and not isinstance(example, str | bytes):
        return [_like(value, (*path, str(index)) if len(example) > 1 else path) for index, value in enumerate(example)]
    name = "_".join(path) or "inputs"
    if example is None:
        raise ModelError(
            f"input {name!r} of the example is None: give it a value, or leave it out where the model's call does "
            "without it"
        )
    array = to_numpy(example)
    if not array.ndim:
        raise ModelError(f"input {name!r} of the example is one number, without a batch")
    dtype = "float32" if np.issubdtype(array.dtype, np.floating) else str(array.dtype)
    dtype = "string" if array.dtype.kind in "OUS" else dtype
    return keras.Input(array.shape[1:], dtype=dtype, name=name)
