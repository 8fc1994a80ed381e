"""Weights without outliers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isobit.edits import SetWeights
from isobit.techniques import TechniqueContext, TechniqueReport


@dataclass(frozen=True)
class ClipWeights:
    """Limit each weight to `limit` times its standard deviation."""

    limit: float = 4.0

    def apply(self, context: TechniqueContext) -> TechniqueReport:
        """Edit every weight that a layer multiplies by; biases and norms stay."""
        model, changed = context.model, {}
        for name in model.graph.weights:
            if any(use.role == "weight" for use in model.graph.uses(name)):
                value = model.weight(name)
                bound = self.limit * float(value.std())
                changed[name] = np.clip(value, -bound, bound)
        model.edit([SetWeights(changed)])
        return TechniqueReport("ClipWeights", changed=tuple(changed))
