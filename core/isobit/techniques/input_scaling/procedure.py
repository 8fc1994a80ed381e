"""The pass that SmoothQuant and AWQ share: which inputs gain by factors, and the edits that bring these in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from isobit.backend.checked_model import CheckedModel
from isobit.edits.draft import Draft
from isobit.techniques.context import TechniqueContext
from isobit.techniques.input_scaling.expected_error import ExpectedError, input_requests
from isobit.techniques.input_scaling.rescaling import Rescaling, ScaledInput, input_placement, rescale, rounded_before
from isobit.techniques.technique import TechniqueReport

#: The rescaling of an input by its moments and the expected error; None where no rescaling makes the error smaller.
Choose = Callable[[CheckedModel, ScaledInput, ExpectedError], Rescaling | None]


def rescalable(
    context: TechniqueContext, items: Sequence[ScaledInput], left: Mapping[str, str]
) -> tuple[list[ScaledInput], dict[str, str]]:
    """The inputs that can gain by factors, and the reasons `left` together with those of the other inputs."""
    reasons = dict(left)
    rounded = [item for item in items if input_placement(item.readers[0], context.plan) is not None]
    useless = rounded_before(context, rounded)
    reasons.update({item.name: useless[item.tensor] for item in rounded if item.tensor in useless})
    return [item for item in items if item.name not in reasons], reasons


def rescale_inputs(
    technique: str, context: TechniqueContext, items: Sequence[ScaledInput], left: Mapping[str, str], choose: Choose
) -> TechniqueReport:
    """Change the inputs `items` as `choose` finds best for them, and the layers that read them."""
    if not items:
        return TechniqueReport(technique, (), dict(left) or {"model": "it has no quantized linear layer"})
    model, plan, reasons = context.model, context.plan, dict(left)
    moments = context.observe(input_requests(items)).float
    draft, changed = Draft(model.graph, model.weight), []
    for item, input_moments in context.each(list(zip(items, moments, strict=True)), "inputs"):
        if not input_moments.is_finite:
            reasons[item.name] = "its input holds NaN or infinity, or nothing"
            continue
        rescaling = choose(model, item, ExpectedError.of(model, plan, item, input_moments))
        if rescaling is None:
            reasons[item.name] = "no alpha makes the expected error smaller"
        else:
            carrier = rescale(draft, item, rescaling.snapped())
            changed.append(f"{item.name}: {rescaling.reason}, divided in {carrier}")
    if draft.edits:
        model.edit(draft)
    return TechniqueReport(technique, tuple(changed), reasons)
