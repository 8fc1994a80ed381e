"""AWQ: weights that meet strong input channels are made larger before they are rounded, the inputs smaller.

Source: Lin et al., "AWQ: Activation-aware Weight Quantization for On-Device LLM Compression and Acceleration",
MLSys 2024, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isobit.backend import BackendModel
from isobit.data import Dataset
from isobit.edits import Draft
from isobit.errors import FormatError
from isobit.plan import Plan
from isobit.techniques.input_errors import SeenInput, best_alpha, observe_inputs
from isobit.techniques.input_scaling import ScaledInput, find_inputs, input_placement, rescale, rounded_before
from isobit.techniques.technique import TechniqueReport
from isobit.techniques.weighted_layer import Floats


@dataclass(frozen=True)
class Awq:
    """Multiply the weights of linear layers by ``s = strength**alpha`` along their inputs, divide the inputs by it.

    The strength of a channel is its root mean square over the data. Alpha is searched between 0 and 1 for each input by
    steps of 0.05: the least output error on a sample of `rows` rows. Made for weights of few bits; where the input is
    rounded too, its noise counts. One pass over the data. The division goes into the norm or layer before, or into a
    Mul where that has other readers.
    """

    rows: int = 256

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise FormatError(f"at least one row, not {self.rows}")

    def apply(self, model: BackendModel, data: Dataset | None = None, plan: Plan | None = None) -> TechniqueReport:
        """Scale every input of a linear layer whose weight the plan quantizes."""
        if data is None or plan is None:
            return TechniqueReport("Awq", (), {"model": "it needs data and a plan: apply it through QuantSim"})
        items, left = find_inputs(model.graph, plan)
        rounded = [item for item in items if input_placement(item.readers[0], plan) is not None]
        useless = rounded_before(model, plan, rounded)
        left.update({item.name: useless[item.tensor] for item in rounded if item.tensor in useless})
        items = [item for item in items if item.name not in left]
        if not items:
            return TechniqueReport("Awq", (), left or {"model": "it has no quantized linear layer"})
        seen = observe_inputs(model, data, items, self.rows)
        draft, changed = Draft(model.graph, model.weight), []
        for item in items:
            found = self._factors(model, plan, item, seen[item.tensor])
            if found is None:
                left[item.name] = "no alpha makes the expected error smaller"
            else:
                changed.append(f"{item.name}: alpha {found[0]:g}, divided in {rescale(draft, item, found[1])}")
        if draft.edits:
            model.edit(draft.edits)
        return TechniqueReport("Awq", tuple(changed), left)

    def _factors(
        self, model: BackendModel, plan: Plan, item: ScaledInput, seen: SeenInput
    ) -> tuple[float, Floats] | None:
        strength = np.sqrt(seen.ranges.mean_square)
        lively = strength > 0
        if not lively.any():
            return None

        def factors(alpha: float) -> Floats:
            found = np.ones_like(strength)
            found[lively] = strength[lively] ** alpha
            found[lively] /= np.sqrt(found[lively].max() * found[lively].min())
            return np.asarray(found, np.float64)

        return best_alpha(model, plan, item, seen, factors)
