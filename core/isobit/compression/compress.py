"""`isobit.compress`: a trained model in, a smaller one of the same framework out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from isobit.backend.checked_model import CheckedModel
from isobit.backend.contract import Backend
from isobit.backend.optional import QdqWriter, TrainsGrids
from isobit.budget import Candidate
from isobit.calibration.schemes.minmax import MinMaxRange
from isobit.compression.compression_report import CompressionReport
from isobit.compression.notes_of_time import notes_of_time
from isobit.compression.stage import Done, Judging, Stage, candidates_of, network_cost, observe_for
from isobit.compression.wishes import Wishes
from isobit.data import Dataset, example_of
from isobit.defaults import DEFAULT_TARGET
from isobit.errors import FormatError, PluginError, RecipeError, TargetError, did_you_mean
from isobit.files import check_writable, write_folder
from isobit.graph.graph import Graph
from isobit.plugins import registry
from isobit.quantsim.apply import context_of
from isobit.quantsim.executor import ExecutorLike
from isobit.quantsim.judging.evaluate import Evaluate, check_evaluate
from isobit.quantsim.observe import Passes
from isobit.quantsim.quantsim import QuantSim
from isobit.quantsim.simulation import Simulation
from isobit.quantsim.training.distill import Distill
from isobit.recipes.recipe import Recipe
from isobit.targets.costs import Costs
from isobit.targets.target import Target
from isobit.techniques.technique import Compresses, CostsTogether, TechniqueReport

#: What is done unless another method is asked for: every layer gets the factors that serve it best.
DEFAULT_METHOD = ("spatial-svd", "weight-svd", "tucker-2")

#: What `Compressed.export` writes.
FILES = {"model": "model.onnx", "recipe": "recipe.toml", "report": "report.json", "summary": "summary.txt"}


@dataclass(frozen=True, eq=False)
class Compressed:
    """A smaller network: the framework's own `model`, ready to be fine-tuned, quantized or saved.

    `report` says what was done, `recipe` does the very same to the model as it came (`isobit.compress(model, data,
    recipe=...)`, or `isobit.quantize`, which quantizes afterwards, but solves no layers in sequence); its ``to_toml``
    writes it. `backend_model` is the model behind the contract of `isobit.backend`, `before` the network as it came,
    which can teach the smaller one. It takes its memory as long as this object is there: `model` by itself is free of
    it.
    """

    model: Any
    report: CompressionReport
    recipe: Recipe
    backend_model: CheckedModel
    before: CheckedModel

    @property
    def distillation(self) -> Distill:
        """``loss = small.distillation(temperature=2.0)``: what leads `model` back to the network as it came.

        ``loss(outputs, *inputs)`` is a number to minimize in fine-tuning, with labels or without (`isobit.QuantSim`
        has the same for its simulator).
        """
        return Distill(self.before)

    def export(self, folder: str | PathLike[str]) -> dict[str, Path]:
        """Write the model as ONNX, the recipe and the report into `folder`, all or nothing.

        Returns the paths by what they hold: ``"model"``, ``"recipe"``, ``"report"`` (JSON) and ``"summary"``. Raises
        OutputError.
        """
        writer = registry().backend("onnx")
        if not isinstance(writer, QdqWriter):
            raise PluginError("the plug-in named 'onnx' cannot write models: reinstall isobit")
        place = Path(fspath(folder))
        check_writable(place, FILES.values())
        with write_folder(place) as staging:
            writer.write_float(self.backend_model.inner, staging / FILES["model"])
            self.recipe.to_toml(staging / FILES["recipe"])
            self.report.to_json(staging / FILES["report"])
            (staging / FILES["summary"]).write_text(self.report.text(most=10**6), "utf-8")
        return {what: place / name for what, name in FILES.items()}


def compress(
    model: Any,
    data: Any = None,
    evaluate: Evaluate | None = None,
    *,
    method: str | Compresses | Sequence[str | Compresses] = DEFAULT_METHOD,
    keep: float = 0.5,
    cost: str = "macs",
    select: str = "integer-program",
    multiple: int = 1,
    ratios: Mapping[str, float] | None = None,
    exclude: str | Sequence[str] = (),
    trials: int = 3,
    recipe: str | PathLike[str] | Recipe | None = None,
    target: str | PathLike[str] | Target = DEFAULT_TARGET,
    example_inputs: Any = None,
    backend: str | Backend | None = None,
    batch_size: int = 32,
    inputs: Callable[[Any], Any] | None = None,
    ignore_non_finite: bool = False,
    executor: ExecutorLike | None = None,
    progress: bool | None = None,
) -> Compressed:
    """Make a network smaller: `keep` is the share of its `cost` that is kept, over all layers together.

    `method` names what is done to a layer: ``"spatial-svd"``, ``"weight-svd"``, ``"tucker-2"``, ``"channel-pruning"``,
    or what a plug-in adds; of several that change one layer each, every layer gets the best one, others follow each
    other. `cost` is ``"macs"``, ``"parameters"``, ``"bytes"``, ``"activations"`` or ``"milliseconds"`` by the table of
    the `target` (that of onnxruntime-cpu unless said).
    With `data`, the errors of outputs are made small and decide which layer gives how much; without, those of weights.

    `select` is ``"integer-program"`` (the least loss in all) or ``"greedy"`` (losses below one bound; with `evaluate`,
    every layer is evaluated at ten sizes). Up to `trials` choices of sizes are carried out, and the best one is taken,
    by `evaluate` (a function that gets one from a batch to outputs by name, and returns a number, the higher the
    better, or several by name), else by the outputs on some samples. `multiple` is what sizes are multiples of (8, 32);
    `ratios` gives layers, by name or pattern, a share of their own cost; `exclude` holds patterns of layers or op types
    that stay whole. `recipe`, of an earlier result, is applied in place of all that. With data of more than one batch,
    layers are then solved again one behind the other, where outputs of samples that were held back come nearer by it,
    and `evaluate` says no less.

    `batch_size` to `progress` are about the pass over the data (`isobit.QuantSim`). A QuantSim in place of the model is
    one that was opened already, and stays as it is. Raises FormatError for an unknown
    method, cost or layer, and for what is no share, EvaluateError for an `evaluate` that says nothing.
    """
    if evaluate is not None:
        check_evaluate(evaluate, picklable=False)
    wishes = Wishes(keep, cost, select, multiple, ratios or {}, exclude, trials)
    plugins = registry()
    listed = list(method) if isinstance(method, Sequence) and not isinstance(method, str) else [method]
    if not listed:
        raise FormatError(f"compress needs a method: {', '.join(compression_methods())}")
    methods = [_method(each) for each in listed]
    names = [each.method for each in methods]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise FormatError(f"method names {twice!r} twice: name each method once")
    chosen_target = plugins.target(target)
    table = _table(chosen_target, cost)
    example = example_of(data, inputs) if example_inputs is None and data is not None else example_inputs
    if isinstance(model, QuantSim):
        sim = QuantSim.of_simulation(model.simulation.copy())
    else:
        sim = QuantSim(model, example, target=chosen_target, backend=backend)
    simulation, passes = sim.simulation, None
    if data is not None:
        dataset = Dataset(data, sim.graph, batch_size=batch_size, inputs=inputs, ignore_non_finite=ignore_non_finite)
        passes = sim.passes(dataset, executor, None, progress)
    if recipe is not None:
        return _by_recipe(simulation, passes, plugins.recipe(recipe), cost, table, evaluate)
    return _Run(simulation, passes, methods, wishes, table, evaluate).compressed()


class _Run:
    """One compression, stage after stage."""

    def __init__(
        self,
        simulation: Simulation,
        passes: Passes | None,
        methods: Sequence[Compresses],
        wishes: Wishes,
        table: Costs | None,
        evaluate: Evaluate | None,
    ) -> None:
        self.simulation, self.passes, self.methods = simulation, passes, methods
        self.wishes, self.table, self.unit = wishes, table, wishes.cost
        self.before = network_cost(simulation.graph, table)
        if not self.before.of(self.unit) > 0:
            raise FormatError(f"the network has no {self.unit}: choose another cost")
        wishes.check(simulation.graph)
        self.judging = Judging(simulation.model, evaluate)
        self.offered: list[tuple[Graph, Candidate]] = []  # all that methods have looked at
        self.unmet: dict[str, str] = {}  # notes of ratios that no method has met, by layer
        self.stages: list[Done] = []
        self.original = simulation.model

    def compressed(self) -> Compressed:
        waiting = list(self.methods)
        share = self.wishes.keep ** (1 / len(waiting))
        if self.wishes.keep == 1 and not self.wishes.ratios:
            waiting = []
        while waiting:
            waiting = self._stage(waiting, share)
        steps = tuple(step for stage in self.stages for step in stage.steps)
        names = ", ".join(each.method for each in self.methods)
        recipe = Recipe(
            "compress", f"{names}: {self._kept:.1%} of the {self.unit}, the sizes that isobit.compress chose", steps
        )
        return _compressed(self.simulation.model, self._report(), recipe, self.original)

    def _stage(self, waiting: list[Compresses], share: float) -> list[Compresses]:
        """Run the first method, with those behind it that change single layers as it does; returns the others."""
        context = context_of(self.simulation, self.passes, MinMaxRange(), waiting[0].method)
        observe_for(list(takewhile(_alone, waiting)), context)
        together, offered = waiting[:1], candidates_of(waiting[:1], context, self.wishes, self.table)
        while len(together) < len(waiting) and _single(offered[-1]):
            more = candidates_of(waiting[len(together) : len(together) + 1], context, self.wishes, self.table)
            if not _single(more[0]):
                break
            together, offered = waiting[: len(together) + 1], [*offered, *more]
        self.offered += [(context.graph, candidate) for each in offered for candidate in each]
        rest = waiting[len(together) :]
        now = network_cost(context.graph, self.table).of(self.unit)
        whole = self.before.of(self.unit)
        # the last one makes up for what those before it could not reach
        asked = self.wishes.keep * whole if not rest else now * share ** len(together)
        stage = Stage(together, offered, context, self.wishes, self.judging, self.table, asked)
        done = stage.done()
        _take(self.simulation, done.model, done.reports)
        self.unmet = {name: note for name, note in self.unmet.items() if name not in stage.fixed} | stage.unmet
        self.wishes = self.wishes.after(self.simulation.graph, stage.fixed)
        self.stages.append(done)
        return rest

    @property
    def _kept(self) -> float:
        return network_cost(self.simulation.graph, self.table).of(self.unit) / self.before.of(self.unit)

    def _report(self) -> CompressionReport:
        layers = tuple(layer for stage in self.stages for layer in stage.layers)
        changed = {layer.name for layer in layers}
        left = {name: why for stage in self.stages for name, why in stage.left.items() if name not in changed}
        first = self.stages[0] if self.stages else None
        notes = [note for stage in self.stages for note in stage.notes]
        if self.stages:
            notes += [*self.unmet.values(), *self.wishes.unreached(self.offered)]
        if not layers:
            why = "keep is 1" if not self.stages else "no layer has a size that serves"
            notes.append(f"nothing was changed: {why}")
        elif self._kept > self.wishes.keep * 1.01:
            notes.append(
                f"keep={self.wishes.keep:g} of the {self.unit} is out of reach of these layers and methods: "
                f"{self._kept:.3g} is the nearest"
            )
        elif self._kept < self.wishes.keep * 0.99:
            notes.append(f"sizes allow no share nearer to keep={self.wishes.keep:g} than {self._kept:.3g}")
        after = network_cost(self.simulation.graph, self.table)
        notes += notes_of_time(
            self.unit, self._kept, (self.before, after), (self.original.graph, self.simulation.graph), self.table
        )
        if self.passes is not None:
            notes += list(self.passes.dataset.notes)
        return CompressionReport(
            tuple(each.method for each in self.methods),
            self.unit,
            self.wishes.keep,
            self._kept,
            self.before,
            after,
            layers,
            left,
            first.points if first else (),
            {name: points for stage in self.stages for name, points in stage.layer_curves.items()},
            tuple(trial for stage in self.stages for trial in stage.trials),
            self.judging.by,
            self.judging.before,
            self.judging.count,
            tuple(dict.fromkeys(notes)),
        )


def _by_recipe(
    simulation: Simulation,
    passes: Passes | None,
    recipe: Recipe,
    unit: str,
    table: Costs | None,
    evaluate: Evaluate | None,
) -> Compressed:
    """The steps of a recipe as they are; those that change a layer each observe the network together, as they did.

    `evaluate` judges what is solved in sequence, as it did when sizes were chosen.
    """
    before, original = network_cost(simulation.graph, table), simulation.model
    stages: list[list[Compresses]] = []
    for step in recipe.steps:
        technique = step.make()
        if not isinstance(technique, Compresses):
            raise RecipeError(
                f"recipe {recipe.name!r}: {step.name} does not make a network smaller: give it to isobit.quantize"
            )
        if stages and _alone(technique) and _alone(stages[-1][0]):
            stages[-1].append(technique)
        else:
            stages.append([technique])
    reports = []
    judging, sequence = Judging(original, evaluate), list[str]()
    for together in stages:
        context = context_of(simulation, passes, MinMaxRange(), together[0].method)
        observe_for(together, context)
        copy = simulation.model.copy()
        done = [technique.apply(context.on(copy)) for technique in together]
        copy, told = judging.in_sequence(context, copy, done)
        sequence += told
        _take(simulation, copy, done)
        reports += done
    after = network_cost(simulation.graph, table)
    kept = after.of(unit) / before.of(unit) if before.of(unit) > 0 else 1.0
    notes = [*(text for each in reports for text in each.changed), *(note for each in reports for note in each.notes)]
    notes += sequence
    report_ = CompressionReport(
        (),
        unit,
        kept,
        kept,
        before,
        after,
        judged_by="" if evaluate is None else judging.by,
        score_before=judging.before,
        evaluations=judging.count,
        notes=tuple(dict.fromkeys(notes)),
    )
    return _compressed(simulation.model, report_, recipe, original)


def _compressed(model: CheckedModel, report_: CompressionReport, recipe: Recipe, original: CheckedModel) -> Compressed:
    """The result, whose native model trains as it is: in float."""
    if isinstance(model.inner, TrainsGrids):
        model.inner.train_in_float()
    before = original.copy() if original is model else original  # what trains is no teacher
    return Compressed(model.native, report_, recipe, model, before)


def _take(simulation: Simulation, model: CheckedModel, reports: Sequence[TechniqueReport]) -> None:
    """Let the simulation go on with an edited copy of its model."""
    edits_before = len(simulation.edits)
    simulation.fingerprint()
    simulation.model = model
    for report in reports:
        simulation.take_report(report, edits_before)


def _alone(method: Compresses) -> bool:
    """Whether a method changes each layer by itself, so that one pass over the data serves it and others like it."""
    return not isinstance(method, CostsTogether)


def _single(candidates: Sequence[Any]) -> bool:
    """Whether each candidate is a layer by itself, so that another method may take its place."""
    return all(len(candidate.layers) == 1 for candidate in candidates)


def _method(asked: object) -> Compresses:
    if not isinstance(asked, str):
        if isinstance(asked, Compresses):
            return asked
        raise FormatError(f"a method is a name or a technique that compresses, not {asked!r}")
    known = compression_methods()
    if asked not in known:
        raise FormatError(f"no method is called {asked!r}{did_you_mean(asked, known)}; known are {', '.join(known)}")
    return known[asked]


def compression_methods() -> dict[str, Compresses]:
    """The techniques that compress, with their settings as they come, by the name of the method."""
    found = {}
    for technique in registry().techniques().values():
        if isinstance(getattr(technique, "method", None), str):
            made = technique()
            if isinstance(made, Compresses):
                found[made.method] = made
    return dict(sorted(found.items()))


def _table(target: Target, unit: str) -> Costs | None:
    """The target's first table of times that says what a multiply-accumulate takes."""
    table = next((table for table in target.costs if table.multiply), None)
    if table is None and unit == "milliseconds":
        raise TargetError(
            f"target {target.name!r} does not say what a multiply-accumulate takes: a target's [[costs]] needs "
            f"`multiply` for cost='milliseconds', as target={DEFAULT_TARGET!r} has"
        )
    return table
