"""Recipe files are checked; steps are judged, rolled back where they hurt, and skipped where they do not apply."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from numpy_backend import NumpyBackend
from registries import own_registry
from technique_networks import chain, opened, simulator

import isobit
from isobit.calibration import MinMaxRange
from isobit.data import Dataset
from isobit.edits import SetWeights
from isobit.errors import DataError, EditError, RecipeError, RecipeWarning
from isobit.plugins import hookimpl, registry
from isobit.quantsim.checks.quality import output_sqnr, sample_decibels
from isobit.quantsim.run_recipe import run_recipe
from isobit.recipes import Recipe, Step, StepResult, parse_recipe
from isobit.techniques import CorrectBias, EqualizeCrossLayers, FoldBatchNorms, TechniqueReport
from isobit.testing.networks.convolutional import conv_net


@dataclass(frozen=True)
class Spoil:
    """A technique of a plug-in that makes everything worse."""

    amount: float = 0.3

    def apply(self, context) -> TechniqueReport:
        name, model = "fc.weight", context.model
        model.edit([SetWeights({name: model.weight(name) * np.float32(1 + self.amount)})])
        return TechniqueReport("Spoil", (name,))


@dataclass(frozen=True)
class Fail:
    """Fails on this network; `late` once it has changed it."""

    error: type[Exception] = EditError
    late: bool = False

    def apply(self, context) -> TechniqueReport:
        if self.late:
            Spoil().apply(context)
        raise self.error("no such shape")


KNOWN = {cls.__name__: cls for cls in (FoldBatchNorms, EqualizeCrossLayers, CorrectBias, Spoil)}


def run(sim, steps: Recipe, data) -> list[StepResult]:
    """The results of a recipe's steps."""
    run_recipe(sim.simulation, steps, sim.passes(Dataset(data, sim.graph), None, None, None), MinMaxRange())
    return list(sim.steps)


def recipe(*steps: Step, samples: int = 16) -> Recipe:
    return Recipe("test", "", steps, samples)


def test_a_harmful_step_is_rolled_back() -> None:
    network = chain(1, spread=0)
    data = [network.batch(8, seed) for seed in range(3)]
    sim = simulator(network, weights="int8 per-tensor")
    plain = [np.array(sim.backend_model.weight(name)) for name in ("fc.weight", "fc.bias")]
    results = run(sim, recipe(Step(Spoil)), data)
    assert results[0].outcome == "rolled back"
    assert results[0].before > results[0].after
    for before, name in zip(plain, ("fc.weight", "fc.bias"), strict=True):
        np.testing.assert_array_equal(sim.backend_model.weight(name), before)
    assert sim.simulation.edits == []
    sim.calibrate(data)
    assert not sim.report.techniques


@pytest.mark.parametrize("error", [EditError, ValueError])
@pytest.mark.parametrize("late", [False, True])
def test_a_step_that_fails_is_skipped_with_the_reason(error: type[Exception], late: bool) -> None:
    network = chain(1, spread=0)
    data = [network.batch(8)]
    sim = simulator(network)
    plain = np.array(sim.backend_model.weight("fc.weight"))
    with pytest.warns(RecipeWarning, match="Fail was left out.*no such shape"):
        failed, folded = run(sim, recipe(Step(Fail, {"error": error, "late": late}), Step(FoldBatchNorms)), data)
    assert (failed.outcome, "no such shape" in failed.why) == ("skipped", True)
    assert folded.outcome != "skipped"
    np.testing.assert_array_equal(sim.backend_model.weight("fc.weight"), plain)
    sim.calibrate(data)


def test_a_step_that_fails_for_the_data_or_half_way_is_an_error() -> None:
    network = chain(1, spread=0)
    with pytest.raises(DataError):
        run(simulator(network), recipe(Step(Fail, {"error": DataError})), [network.batch(8)])
    with pytest.raises(ValueError, match="no such shape"):  # nothing was kept to go back to
        run(simulator(network), recipe(Step(Fail, {"error": ValueError, "late": True}), samples=0), [network.batch(8)])


def test_good_steps_are_kept_and_counted() -> None:
    network = chain(2)
    data = [network.batch(8, seed) for seed in range(3)]
    sim = simulator(network, weights="int8 per-tensor")
    expected = [sim.backend_model.run(batch) for batch in data]
    steps = recipe(Step(EqualizeCrossLayers), Step(Spoil), Step(CorrectBias), samples=48)
    results = run(sim, steps, data)
    equalized, spoilt, corrected = results
    assert (equalized.outcome, spoilt.outcome) == ("kept", "rolled back")
    assert equalized.after > equalized.before + 10
    assert spoilt.before == equalized.after
    # A step is judged with what comes for nothing behind it: biases were corrected before and after the equalization.
    assert corrected.after == equalized.after
    assert corrected.before < corrected.after - 1
    # One pass for the first step and for judging before it, one for the equalized model, one for the spoilt one.
    assert (equalized.passes, spoilt.passes, corrected.passes) == (2.0, 1.0, 0.0)
    sim.calibrate(data)
    reached = np.mean([sample_decibels(exact, sim.run(batch)) for exact, batch in zip(expected, data, strict=True)])
    last = corrected.after if corrected.outcome == "kept" else corrected.before
    # The judge saw the whole data, so it saw this model; its ranges were those of the model before its biases changed.
    assert reached == pytest.approx(last, abs=0.1)
    assert "kept" in str(equalized)
    assert "dB" in str(equalized)


def test_kept_whatever_it_does_and_skipped() -> None:
    network = chain(3, spread=0)
    sim = simulator(network)
    steps = recipe(Step(Spoil, keep=True), Step(CorrectBias, weight_bits_below=8), Step(FoldBatchNorms))
    spoilt, skipped, unchanged = run(sim, steps, network.batch(4))
    assert (spoilt.outcome, spoilt.before) == ("kept", None)  # what stays in any case is not judged
    assert (skipped.outcome, skipped.why) == ("skipped", "no weight has fewer than 8 bits")
    assert unchanged.outcome == "changed nothing"
    low = simulator(network, weights="int4")
    assert run(low, recipe(Step(CorrectBias, weight_bits_below=8)), network.batch(4))[0].outcome != "skipped"


def test_one_shot_data_serves_what_does_not_judge() -> None:
    network = chain(4)
    with pytest.raises(DataError, match="recipe 'test'"):
        run(simulator(network), recipe(Step(EqualizeCrossLayers)), iter([network.batch(2)]))
    assert run(simulator(network), recipe(Step(FoldBatchNorms), samples=0), iter([network.batch(2)]))


def test_the_library_follows_a_recipe(monkeypatch) -> None:
    registry_with_numpy = own_registry()
    monkeypatch.setattr(registry_with_numpy, "backend_for", lambda model: NumpyBackend())
    for module in ("isobit.quantsim.quantsim", "isobit.quantsim.quantize"):
        monkeypatch.setattr(f"{module}.registry", lambda: registry_with_numpy)
    network = chain(5)
    data = network.batch(16)
    plain = isobit.quantize(opened(network), data, weights="int8 per-tensor")
    better = isobit.quantize(opened(network), data, weights="int8 per-tensor", recipe="ptq")
    expected = [opened(network).run(data)]
    assert output_sqnr(expected, [better.run(data)]) > output_sqnr(expected, [plain.run(data)]) + 10
    assert [step.step for step in better.steps][:2] == ["FoldBatchNorms", "EqualizeCrossLayers"]
    assert "EqualizeCrossLayers kept" in str(better.report)
    with pytest.raises(RecipeError, match="either"):
        isobit.quantize(opened(network), data, recipe="ptq", techniques=[])


def test_basic_is_what_it_was() -> None:
    (step,) = registry().recipe("basic").steps
    assert step.make() == FoldBatchNorms()
    sim = simulator(conv_net())
    (result,) = run(sim, registry().recipe("basic"), conv_net().batch(2))
    assert (result.outcome, result.before) == ("kept", None)


def test_every_recipe_loads_and_is_explained() -> None:
    for name in registry().recipes():
        recipe_found = registry().recipe(name)
        assert recipe_found.name == name
        assert recipe_found.description in str(recipe_found)
        assert "calibrate" in str(recipe_found)


def test_settings_reach_the_technique() -> None:
    text = 'schema = 1\nname = "mine"\n[[steps]]\ntechnique = "CorrectBias"\nsettings = { mode = "full" }\n'
    (step,) = parse_recipe(text, "mine.toml", KNOWN).steps
    assert step.make() == CorrectBias("full")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("nonsense", "not valid TOML"),
        ("schema = 2\nname = 'a'", "schema: must be 1"),
        ("schema = 1\nname = 'a'\nstep = []", "unknown key 'step'"),
        ("schema = 1\nname = 'a'\njudge_samples = 'x'", "judge_samples: must be int"),
        ("schema = 1\nname = ''", "needs a name"),
        ("schema = 1\nname = 'a'\nsteps = [1]", "step 1: must be a table"),
        ("schema = 1\nname = 'a'\n[[steps]]\ntechnique = 'FoldBatchNorm'", "did you mean 'FoldBatchNorms'"),
        ("schema = 1\nname = 'a'\n[[steps]]\ntechnique = 'Spoil'\nkept = true", "unknown key 'kept'"),
        ("schema = 1\nname = 'a'\n[[steps]]\ntechnique = 'Spoil'\nsettings = {much = 1}", "unknown key 'much'"),
        (
            "schema = 1\nname = 'a'\n[[steps]]\ntechnique = 'CorrectBias'\nsettings = {mode = 'x'}",
            "settings of CorrectBias",
        ),
        ("schema = 1\nname = 'a'\n[[steps]]\ntechnique = 'Spoil'\nkeep = 1", "keep: must be bool"),
    ],
)
def test_wrong_files_say_what_is_wrong(text: str, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem) as caught:
        parse_recipe(text, "mine.toml", KNOWN)
    assert str(caught.value).startswith("mine.toml")


def test_a_strangers_recipe(tmp_path) -> None:
    path = tmp_path / "gentle.toml"
    path.write_text('schema = 1\nname = "gentle"\ndescription = "d"\n[[steps]]\ntechnique = "Spoil"\n')

    class Plugin:
        @hookimpl
        def isobit_recipes(self):
            return [path]

        @hookimpl
        def isobit_techniques(self):
            return [Spoil]

    plugins = own_registry(SimpleNamespace(name="stranger", value="here", dist=None, load=Plugin))
    assert plugins.recipe("gentle").steps == (Step(Spoil),)
    assert plugins.recipe(str(path)).name == "gentle"
    with pytest.raises(RecipeError, match="did you mean 'gentle'"):
        plugins.recipe("gentl")
    with pytest.raises(RecipeError, match="cannot be read"):
        plugins.recipe("nowhere.toml")
    with pytest.raises(RecipeError, match="name or the path"):
        plugins.recipe(3)  # type: ignore[arg-type]
