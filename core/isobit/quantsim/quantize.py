"""`isobit.quantize`: a trained model in, a calibrated simulator out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from os import PathLike
from typing import Any

from isobit.calibration.scheme import Calibrator, parse_calibrator
from isobit.data import Dataset, example_of
from isobit.defaults import DEFAULT_RECIPE, DEFAULT_TARGET
from isobit.encodings.quant_spec import QuantSpec
from isobit.errors import FormatError, ModelError, RecipeError
from isobit.graph.graph import Graph
from isobit.plugins import registry
from isobit.quantsim.apply import apply_technique, calibrate, needs_own_pass
from isobit.quantsim.branches import open_for_data
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

    `target` is what runs the result (`open_simulator`): ``"onnxruntime-cpu"`` unless said, which has what gains time
    there in integers and the rest in float; or another name or TOML file.
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
    data_of = partial(Dataset, data, batch_size=batch_size, inputs=inputs, ignore_non_finite=ignore_non_finite)
    if isinstance(model, QuantSim):
        given = [*settings, *(["target"] if target is not None else [])]
        if given or example_inputs is not None:
            raise ModelError(f"a QuantSim has its settings already: leave out {', '.join(given) or 'example_inputs'}")
        sim = model
    else:
        sim = open_on(data, data_of, model, example_inputs, inputs=inputs, target=target, **settings)
    dataset = data_of(sim.graph)
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


def open_on(
    data: Any,
    data_of: Callable[[Graph], Dataset],
    model: Any,
    example_inputs: Any,
    *,
    inputs: Callable[[Any], Any] | None,
    **settings: Any,
) -> QuantSim:
    """The simulator of a model, by the example or, where there is none, by the data, which `data_of` gives a graph."""
    if example_inputs is not None:
        return open_simulator(model, example_inputs, **settings)
    return open_for_data(partial(open_simulator, model, **settings), example_of(data, inputs), data_of)


def open_simulator(
    model: Any,
    example_inputs: Any = None,
    *,
    target: str | PathLike[str] | Target | None = None,
    weights: str | QuantSpec | None = None,
    activations: str | QuantSpec | None = None,
    overrides: Mapping[str, str | QuantSpec | None] | None = None,
    **settings: Any,
) -> QuantSim:
    """A simulator, not calibrated, for a target or for the one that runs what `export` writes, ``"onnxruntime-cpu"``.

    Without a target, formats that onnxruntime-cpu lacks are for other hardware: then it is ``"default"``, which has all
    operations in integers of 2 to 16 bits, and a note says so. The rest is as `QuantSim` takes it.
    """
    lacking = None
    if target is None:
        lacking = _lacking(registry().target(DEFAULT_TARGET), weights, activations, overrides or {})
        target = "default" if lacking else DEFAULT_TARGET
    formats: dict[str, Any] = {"weights": weights, "activations": activations, "overrides": overrides}
    sim = QuantSim(model, example_inputs, target=target, **formats, **settings)
    if lacking:
        sim.simulation.notes[f"quantized for target 'default', since {lacking}"] = None
    return sim


def _lacking(
    target: Target,
    weights: str | QuantSpec | None,
    activations: str | QuantSpec | None,
    overrides: Mapping[str, str | QuantSpec | None],
) -> str:
    """What a target cannot run of the formats that were asked for; empty where it runs them all."""
    try:
        target.activation_format(activations)
        target.weight_format(weights, "Conv")
    except FormatError as error:
        return str(error)
    for pattern, wanted in overrides.items():
        spec = None if wanted is None else QuantSpec.parse(wanted)
        if spec is not None and spec.type_name not in {*target.weight_types, *target.activation_types, "int32"}:
            return f"target {target.name!r} has no {spec.type_name}, which is asked for {pattern!r}"
    return ""
