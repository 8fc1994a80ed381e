"""The pass that SmoothQuant and AWQ share: which inputs gain by factors, and the edits that bring these in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from isobit.backend import BackendModel
from isobit.data import Dataset
from isobit.edits import Draft
from isobit.plan import Plan
from isobit.techniques.input_errors import ExpectedError, observe_inputs
from isobit.techniques.input_scaling import Rescaling, ScaledInput, input_placement, rescale, rounded_before
from isobit.techniques.technique import TechniqueReport

#: The rescaling of an input by what was seen of it and the error that is expected; None where none is as good.
Choose = Callable[[BackendModel, ScaledInput, ExpectedError], Rescaling | None]


def rescale_inputs(
    technique: str,
    model: BackendModel,
    plan: Plan,
    data: Dataset,
    items: Sequence[ScaledInput],
    left: Mapping[str, str],
    choose: Choose,
) -> TechniqueReport:
    """Change the inputs that are not `left` as `choose` finds best for them, and the layers that read them."""
    reasons = dict(left)
    rounded = [i for i in items if i.name not in reasons and input_placement(i.readers[0], plan) is not None]
    useless = rounded_before(model, plan, rounded)
    reasons.update({item.name: useless[item.tensor] for item in rounded if item.tensor in useless})
    chosen = [item for item in items if item.name not in reasons]
    if not chosen:
        return TechniqueReport(technique, (), reasons or {"model": "it has no quantized linear layer"})
    seen = observe_inputs(model, data, chosen)
    draft, changed = Draft(model.graph, model.weight), []
    for item in chosen:
        if not seen[item.tensor].is_finite:
            reasons[item.name] = "its input holds NaN or infinity, or nothing"
            continue
        found = choose(model, item, ExpectedError.of(model, plan, item, seen[item.tensor]))
        if found is None:
            reasons[item.name] = "no alpha makes the expected error smaller"
        else:
            changed.append(f"{item.name}: {found.reason}, divided in {rescale(draft, item, found.snapped())}")
    if draft.edits:
        model.edit(draft.edits)
    return TechniqueReport(technique, tuple(changed), reasons)
