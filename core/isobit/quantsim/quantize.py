"""`isobit.quantize`: a trained model in, a calibrated simulator out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from os import PathLike
from typing import Any

from isobit.calibration.scheme import Calibrator, parse_calibrator
from isobit.data import Dataset, example_of
from isobit.defaults import DEFAULT_RECIPE, DEFAULT_TARGET
from isobit.errors import ModelError, RecipeError
from isobit.plugins import registry
from isobit.quantsim.apply import apply_technique, calibrate, needs_own_pass
from isobit.quantsim.executor import ExecutorLike
from isobit.quantsim.quantsim import QuantSim
from isobit.quantsim.run_recipe import run_recipe
from isobit.recipes.recipe import Recipe
from isobit.statistics.sampling import SAMPLE_LIMIT
from isobit.targets.target import Target
from isobit.techniques.technique import Technique


def quantize(
    model: Any,
    data: Any,
    *,
    target: str | PathLike[str] | Target | None = None,
    method: str | Calibrator = "auto",
    recipe: str | PathLike[str] | Recipe | None = None,
    techniques: Iterable[Technique] | None = None,
    example_inputs: Any = None,
    batch_size: int = 32,
    inputs: Callable[[Any], Any] | None = None,
    ignore_non_finite: bool = False,
    executor: ExecutorLike | None = None,
    resume: str | PathLike[str] | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> QuantSim:
    """Quantize a trained model: run a recipe's techniques, place quantizers, calibrate on `data`.

    `target` is what runs the result: ``"onnxruntime-cpu"`` unless said, which has what gains time there in integers and
    the rest in float; ``"default"`` has everything in integers, of 2 to 16 bits; or another name or TOML file.
    `recipe` is a name (``"fast"`` unless said, which folds batch norms and corrects biases; ``"basic"``, which folds
    alone; ``"ptq"``, ``"transformer"``) or a TOML file; `techniques` are run in its place. `method` is a scheme as in
    `QuantSim.calibrate`; ``"auto"`` compares several by the outputs. `settings` are those of QuantSim (weights,
    activations, overrides, exclude, backend); a QuantSim in place of the model has its own, and is the one that is
    returned, calibrated.
    `batch_size` to `progress` are about the passes over the data, all of them (`isobit.QuantSim`).
    ``.export(folder)`` writes what a runtime loads. Raises DataError, before anything runs, for an iterator that serves
    once where more passes are needed.
    """
    if recipe is not None and techniques is not None:
        raise RecipeError("either a recipe or techniques: a recipe names its techniques itself")
    plugins = registry()
    chosen = plugins.recipe(DEFAULT_RECIPE if recipe is None else recipe)
    calibrator = parse_calibrator(method, plugins.calibrators())
    if isinstance(model, QuantSim):
        given = [*settings, *(["target"] if target is not None else [])]
        if given or example_inputs is not None:
            raise ModelError(f"a QuantSim has its settings already: leave out {', '.join(given) or 'example_inputs'}")
        sim = model
    else:
        example = example_of(data, inputs) if example_inputs is None else example_inputs
        sim = QuantSim(model, example, target=DEFAULT_TARGET if target is None else target, **settings)
    dataset = Dataset(data, sim.graph, batch_size=batch_size, inputs=inputs, ignore_non_finite=ignore_non_finite)
    passes = sim.passes(dataset, executor, resume, progress)
    if techniques is None:
        run_recipe(sim.simulation, chosen, passes, calibrator)
    else:
        steps = list(techniques)
        dataset.require_passes(1 + sum(map(needs_own_pass, steps)), "quantize, with these techniques,")
        for technique in steps:
            apply_technique(sim.simulation, technique, passes, calibrator)
    calibrate(sim.simulation, passes, calibrator, SAMPLE_LIMIT, ignore_non_finite=ignore_non_finite)
    return sim
