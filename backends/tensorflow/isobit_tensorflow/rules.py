"""The rules by which Keras layers and operations become nodes of the neutral graph."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import keras

from isobit_tensorflow.reading import Rule


@cache
def _layer_rules() -> Mapping[type, Rule]:
    from isobit_tensorflow import (
        rules_activations,
        rules_dense,
        rules_merging,
        rules_norm,
        rules_preprocessing,
        rules_recurrent,
        rules_shapes,
        rules_steps,
        rules_training,
        rules_windows,
    )

    parts = (
        rules_activations, rules_dense, rules_merging, rules_norm, rules_preprocessing,
        rules_recurrent, rules_shapes, rules_steps, rules_training, rules_windows,
    )  # fmt: skip
    return {kind: rule for part in parts for kind, rule in part.LAYERS.items()}


@cache
def _operation_rules() -> Mapping[str, Rule]:
    from isobit_tensorflow import rules_activations, rules_dense, rules_merging, rules_shapes

    parts = (rules_activations, rules_dense, rules_merging, rules_shapes)
    return {kind: rule for part in parts for kind, rule in part.OPERATIONS.items()}


def rule_of(operation: Any) -> Rule | None:
    """The rule of a layer's class, where its call is that class's own, or of an operation of `keras.ops`."""
    kind = type(operation)
    if isinstance(operation, keras.layers.Layer):
        for parent in kind.__mro__:
            rule = _layer_rules().get(parent)
            if rule is not None:
                return rule if kind.call is parent.call else None  # type: ignore[attr-defined]
        return None
    return _operation_rules().get(kind.__name__) if kind.__module__.startswith("keras.src.ops.") else None
