"""What a recipe takes, told before it runs: passes over the data, minutes and memory, each from the least to the most.

The passes follow from the recipe and from what its techniques say of themselves (`Observes`, `SharesCalibration`,
`RoundsWeights`). The factors are of runs on convolutional networks and are wide on purpose: what a step does with what
it has seen depends on the data. Time and memory of techniques that others wrote are not told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from isobit.calibration.schemes.auto import Auto
from isobit.forecast.float_pass import FloatPass, activation_bytes
from isobit.graph.graph import Graph
from isobit.quantsim.apply import needs_own_pass
from isobit.quantsim.judging.judged_part import judged_part
from isobit.quantsim.simulation import Simulation
from isobit.recipes.recipe import Recipe, Step
from isobit.techniques.technique import RoundsWeights

Range = tuple[float, float]

#: A pass that observes, and a run of a simulator, over one of the float model. A batch is up to twice as fast as its
#: samples one by one, and whole channels are reduced at several times the cost of the network.
_OBSERVING, _SIMULATING = (0.6, 4.0), (0.6, 4.0)

#: Schemes that `auto` compares, and samples by which they are judged where a recipe names none.
_SCHEMES, _HEAD = len(Auto().candidates), 16

#: Seconds to make a graph that runs, whatever it is, for each of its operations, and for each million of weights.
_OPENING, _OPENING_NODE, _OPENING_WEIGHTS = (0.1, 0.3), (0.001, 0.004), (0.005, 0.04)

#: Seconds for a million weights that are rounded; none where the recipe finds that rounding loses nothing.
_ROUNDING = (0.0, 10.0)

#: MB of what the libraries take that are imported meanwhile.
_LIBRARIES = (100.0, 400.0)

#: Samples of a batch, as `isobit.quantize` and `isobit quantize` take them unless said.
_BATCH = 32


@dataclass(frozen=True)
class RecipeForecast:
    """What a recipe takes with so many samples: each figure as the least and the most.

    `passes` go through all samples. `minutes` are those of this machine or of the table, by `FloatPass`; `memory` is MB
    over what the process holds with the model open. None where it is not told, and `not_told` says why.
    """

    recipe: str
    samples: int
    passes: Range
    minutes: Range | None
    memory: Range | None
    not_told: str = ""

    def __str__(self) -> str:
        least, most = self.passes
        words = [f"{least:g} passes" if least == most else f"{least:g} to {most:g} passes"]
        words[0] = words[0].replace("1 passes", "1 pass") if least == most == 1 else words[0]
        if self.minutes is not None:
            words.append(_between(self.minutes))
        if self.memory is not None:
            words.append(f"{self.memory[0] / 1e3:.2g} to {self.memory[1] / 1e3:.2g} GB")
        return ", ".join(words)


def recipe_forecast(
    simulation: Simulation, recipe: Recipe, samples: int, weights: float, float_pass: FloatPass, graph: Graph
) -> RecipeForecast:
    """What `recipe` takes on `samples` samples; `weights` are bytes of the model's constants.

    `graph` is the simulation's, with the sizes of a sample where one is known.
    """
    steps = [step for step in recipe.steps if not step.obstacle(simulation.plan)]
    passes = _passes(recipe, steps)
    why = _unknown(steps) or ("" if float_pass.milliseconds is not None else float_pass.source)
    if why or float_pass.milliseconds is None:
        return RecipeForecast(recipe.name, samples, passes, None, None, why)
    run, made = _work(recipe, steps, samples)
    seconds, millions = float_pass.milliseconds / 1e3, weights / 4e6
    rounding = sum(_rounds(step) for step in steps)
    least, most = (
        seconds * (passes[end] * samples * _OBSERVING[end] + run[end] * _SIMULATING[end])
        + made[end] * (_OPENING[end] + len(graph.nodes) * _OPENING_NODE[end] + millions * _OPENING_WEIGHTS[end])
        + rounding * millions * _ROUNDING[end]
        for end in (0, 1)
    )
    memory = _memory(graph, steps, samples, weights)
    return RecipeForecast(recipe.name, samples, passes, (least / 60, most / 60), memory)


def _judged(recipe: Recipe, steps: Sequence[Step]) -> int:
    return sum(not step.keep for step in steps) if recipe.judge_samples else 0


def _passes(recipe: Recipe, steps: Sequence[Step]) -> Range:
    """How often all samples are gone through.

    What steps ask for comes in one pass where nothing was changed in between; rounding goes through them again where
    layers are taken in groups, or one behind the other. Where samples are held back, the calibration sees them first.
    """
    own = sum(needs_own_pass(step.make()) for step in steps)
    rounding = sum(_rounds(step) for step in steps)
    apart = int(recipe.hold_back and _judged(recipe, steps) > 0)
    return 1.0 + apart, float(1 + apart + own + 4 * rounding)


def _work(recipe: Recipe, steps: Sequence[Step], samples: int) -> tuple[Range, Range]:
    """Samples that simulators run to be judged, and graphs that are made, for that and for the passes."""
    judged, passes = _judged(recipe, steps), _passes(recipe, steps)
    head = min(samples, _HEAD)
    if recipe.judge_samples:
        batches = -(-samples // _BATCH)
        sizes = (min(_BATCH, samples - index * _BATCH) for index in range(batches))
        head = judged_part(recipe, sizes, batches).samples
    compared = (1.0 + judged, float(_SCHEMES * (2 + 2 * judged)))
    return (compared[0] * head, compared[1] * head), (2 + compared[0], 4 + compared[1] + passes[1])


def _rounds(step: Step) -> bool:
    technique = step.make()
    return isinstance(technique, RoundsWeights) and technique.rounds_weights


def _unknown(steps: Sequence[Step]) -> str:
    """Why time and memory of these steps are not told, or an empty text."""
    foreign = [step.name for step in steps if not step.technique.__module__.startswith("isobit.")]
    return f"nobody has measured what {', '.join(foreign)} takes" if foreign else ""


def _memory(graph: Graph, steps: Sequence[Step], samples: int, weights: float) -> Range:
    """MB over the opened model: copies of weights, the tensors of a batch, and rows of inputs that rounding keeps."""
    largest, computed = (size * min(samples, _BATCH) / 1e6 for size in activation_bytes(graph))
    rows = max((getattr(step.make(), "memory", 0) for step in steps if _rounds(step)), default=0) / 1e6
    least = _LIBRARIES[0] + 2 * weights / 1e6 + largest
    return least, _LIBRARIES[1] + 8 * weights / 1e6 + 2 * computed + 2 * rows


def _between(minutes: Range) -> str:
    """A range of minutes, in seconds where an end is short."""
    low, high = ((60 * end, "s") if end < 2 else (end, "min") for end in minutes)
    unit = f" {low[1]}" if low[1] != high[1] else ""
    return f"{low[0]:.2g}{unit} to {high[0]:.2g} {high[1]}"
