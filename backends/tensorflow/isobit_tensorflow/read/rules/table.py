"""The rules by which Keras layers and operations become nodes of the neutral graph."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import keras

from isobit_tensorflow.read.call import Call, Rule
from isobit_tensorflow.read.open_ranges import Places
from isobit_tensorflow.read.rules import (
    activations,
    categories,
    dense,
    merging,
    normalization,
    preprocessing,
    recurrent,
    shapes,
    spectra,
    time_steps,
    training,
    windows,
)
from isobit_tensorflow.read.rules.native import native
from isobit_tensorflow.read.rules.steps.counting import counted

_OF_LAYERS: tuple[ModuleType, ...] = (
    activations, categories, dense, merging, normalization, preprocessing, recurrent, shapes, spectra,
    time_steps, training, windows,
)  # fmt: skip
_OF_OPERATIONS: tuple[ModuleType, ...] = (activations, categories, dense, merging, shapes, spectra, windows)

_LAYERS: Mapping[type, Rule] = {kind: rule for part in _OF_LAYERS for kind, rule in part.LAYERS.items()}
_OPERATIONS: Mapping[str, Rule] = {kind: rule for part in _OF_OPERATIONS for kind, rule in part.OPERATIONS.items()}


def rule_of(operation: Any) -> Rule | None:
    """The rule of a layer's class, where its call is that class's own, or of an operation.

    None for a layer without a rule. An operation always has one: outside the vocabulary it stays Keras' own.
    """
    kind = type(operation)
    if not isinstance(operation, keras.layers.Layer):
        return _operation
    for parent in kind.__mro__:
        rule = _LAYERS.get(parent)
        if rule is not None:
            return rule if kind.call is parent.call else None  # type: ignore[attr-defined]
    return None


def _operation(call: Call) -> Any:
    """By the rule of its class in `keras.ops`, else as the operation that Keras has."""
    kind = type(call.operation)
    if kind is Places:
        return counted(call, call.x, call.operation.axis)
    rule = _OPERATIONS.get(kind.__name__) if kind.__module__.startswith("keras.src.ops.") else None
    values = None if rule is None else rule(call)
    return native(call) if values is None else values
