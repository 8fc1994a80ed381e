"""The pass that SmoothQuant and AWQ share: which inputs gain by factors, and the edits that bring these in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from isobit.backend import BackendModel
from isobit.data import Dataset
from isobit.edits import Draft
from isobit.plan import Plan
from isobit.techniques.input_errors import SeenInput, observe_inputs
from isobit.techniques.input_scaling import ScaledInput, input_placement, rescale, rounded_before
from isobit.techniques.technique import TechniqueReport
from isobit.techniques.weighted_layer import Floats

#: Alpha and the factors of an input's channels; None where no factors are as good.
Choose = Callable[[BackendModel, Plan, ScaledInput, SeenInput], tuple[float, Floats] | None]


def rescale_inputs(
    technique: str,
    model: BackendModel,
    plan: Plan,
    data: Dataset,
    rows: int,
    items: Sequence[ScaledInput],
    left: Mapping[str, str],
    choose: Choose,
) -> TechniqueReport:
    """Divide the inputs that are not `left` by what `choose` finds for them, and multiply the weights by it."""
    reasons = dict(left)
    rounded = [i for i in items if i.name not in reasons and input_placement(i.readers[0], plan) is not None]
    useless = rounded_before(model, plan, rounded)
    reasons.update({item.name: useless[item.tensor] for item in rounded if item.tensor in useless})
    chosen = [item for item in items if item.name not in reasons]
    if not chosen:
        return TechniqueReport(technique, (), reasons or {"model": "it has no quantized linear layer"})
    seen = observe_inputs(model, data, chosen, rows)
    draft, changed = Draft(model.graph, model.weight), []
    for item in chosen:
        found = choose(model, plan, item, seen[item.tensor])
        if found is None:
            reasons[item.name] = "no alpha makes the expected error smaller"
        else:
            changed.append(f"{item.name}: alpha {found[0]:g}, divided in {rescale(draft, item, found[1])}")
    if draft.edits:
        model.edit(draft.edits)
    return TechniqueReport(technique, tuple(changed), reasons)
