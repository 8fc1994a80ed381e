"""`isobit.quantize`: a trained model in, a calibrated simulator out."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from typing import Any

from isobit.calibration.scheme import Calibrator, parse_calibrator
from isobit.cooking import cook
from isobit.data import example_of
from isobit.errors import ModelError, RecipeError
from isobit.plugins import registry
from isobit.quantsim import QuantSim
from isobit.recipe import Recipe
from isobit.techniques.technique import Technique


def quantize(
    model: Any,
    data: Any,
    *,
    method: str | Calibrator = "minmax",
    recipe: str | PathLike[str] | Recipe | None = None,
    techniques: Iterable[Technique] | None = None,
    example_inputs: Any = None,
    batch_size: int = 32,
    ignore_non_finite: bool = False,
    progress: bool | None = None,
    **settings: Any,
) -> QuantSim:
    """Quantize a trained model: run a recipe's techniques, place quantizers, calibrate on `data`.

    `recipe` is a name (``"basic"``, which folds batch norms, unless said; ``"ptq"``, ``"transformer"``) or a TOML file;
    `techniques` are run in its place. `settings` are those of QuantSim (target, weights, activations, overrides,
    exclude, backend); a QuantSim in place of the model has its own, and is the one that is returned, calibrated.
    ``.export(folder)`` writes what a runtime loads. NaN or infinity in the data is an error unless `ignore_non_finite`.
    """
    if recipe is not None and techniques is not None:
        raise RecipeError("either a recipe or techniques: a recipe names its techniques itself")
    plugins = registry()
    chosen = plugins.recipe("basic" if recipe is None else recipe)
    calibrator = parse_calibrator(method, plugins.calibrators())
    if isinstance(model, QuantSim):
        if settings or example_inputs is not None:
            raise ModelError(
                f"a QuantSim has its settings already: leave out {', '.join(settings) or 'example_inputs'}"
            )
        sim = model
    else:
        sim = QuantSim(model, example_of(data) if example_inputs is None else example_inputs, **settings)
    if techniques is None:
        sim.steps = cook(sim, chosen, data, calibrator, batch_size)
    else:
        sim.apply(*techniques, data=data, batch_size=batch_size)
    sim.calibrate(data, calibrator, batch_size=batch_size, ignore_non_finite=ignore_non_finite, progress=progress)
    return sim
