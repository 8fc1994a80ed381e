"""What quantizing would bring, against counts by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy_backend import NumpyBackend, NumpyModel
from sketch import Sketch

from isobit.backend.checked_model import CheckedModel
from isobit.canonical import canonicalize
from isobit.errors import FormatError, ModelError, RecipeError
from isobit.forecast import Forecast, plan, plan_model
from isobit.forecast.float_pass import FloatPass
from isobit.forecast.plan_model import _conversions
from isobit.forecast.recipe_cost import _between, recipe_forecast
from isobit.plugins import registry
from isobit.quantsim import QuantSim
from isobit.recipes import Recipe, Step
from isobit.search.groups import Groups
from isobit.targets import Costs
from isobit.techniques import CorrectBias

COSTS = Costs("a processor", 3.0, 5.0, {"Add": 1.0, "Softmax": 7.0}, {"Add": 0.5}, {"Conv": 2.0}, {"Conv": 0.25})


def model() -> NumpyModel:
    """Two convolutions, and a softmax that the target runs in float."""
    sketch = Sketch(0)
    x = sketch.input("x", "N", 3, 8, 8)
    y = sketch.node("Conv", x, sketch.random("a.w", 4, 3, 3, 3), name="a", shape=("N", 4, 6, 6), group=1)
    y = sketch.node("Conv", y, sketch.random("b.w", 5, 4, 1, 1), name="b", shape=("N", 5, 6, 6), group=1)
    y = sketch.node("Softmax", y, name="s", shape=("N", 5, 6, 6), axis=1)
    return NumpyModel(canonicalize(sketch.graph(y)), sketch.values)


def forecast(costs: tuple[Costs, ...] = (COSTS,), **settings: object) -> Forecast:
    target = replace(registry().target("onnxruntime-cpu"), costs=costs)
    return plan(model(), target=target, backend=NumpyBackend(), **settings)


def test_figures_are_those_by_hand() -> None:
    found = forecast(exclude=["Softmax"])
    assert {node.name: node.runs for node in found.nodes} == {"a": "integers", "b": "integers", "s": "float"}
    assert next(node.why for node in found.nodes if node.name == "s") == "excluded by you"
    first, second = 4 * 3 * 9 * 36, 5 * 4 * 36
    assert [node.multiply_adds for node in found.nodes] == [first, second, 0]
    assert (found.bytes_before, found.bytes_after) == (4 * (108 + 20), 108 + 20)
    assert (found.quantize, found.dequantize) == (1, 1), "the image, and what the softmax reads"
    assert found.times
    rest, converted = 7 * 5 * 36, 3 * 3 * 64 + 5 * 5 * 36
    assert found.times[0].in_float == pytest.approx(1e-6 * (2 * (first + second) + rest))
    assert found.times[0].quantized == pytest.approx(1e-6 * (0.25 * (first + second) + rest + converted))
    assert "of the time in float, by the times of a processor" in str(found)
    assert found.to_dict()["times"][0]["ratio"] == found.times[0].ratio


def test_each_processor_of_the_target_has_a_time() -> None:
    faster = replace(COSTS, processor="a faster one", multiply={"Conv": 1.0}, integer_multiply={"Conv": 0.125})
    found = forecast(costs=(COSTS, faster), exclude=["Softmax"])
    first, second = found.times
    assert [time.processor for time in found.times] == ["a processor", "a faster one"]
    products = 4 * 3 * 9 * 36 + 5 * 4 * 36
    assert first.in_float - second.in_float == pytest.approx(1e-6 * products)
    assert first.quantized - second.quantized == pytest.approx(1e-6 * 0.125 * products)
    assert str(found).count("of the time in float, by the times of a") == 2


def test_no_gain_is_promised_that_the_runtime_does_not_give() -> None:
    """16 bits have no kernels, and a target without a table has no times."""
    assert "no faster, by the times of" in str(forecast(activations="int16"))
    found = forecast(costs=())
    assert not found.times
    assert "has no times of multiply-adds" in str(found)
    slow = replace(COSTS, integer_multiply={"Conv": 2.0})
    assert "no faster" in str(forecast(costs=(slow,), exclude=["Softmax"]))


def test_no_time_is_told_where_weights_are_in_operations_without_times() -> None:
    """The table knows no MatMul, which holds nearly all weights."""
    sketch = Sketch(0)
    x = sketch.input("x", "N", 3, 1, 1)
    y = sketch.node("Conv", x, sketch.random("a.w", 4, 3, 1, 1), name="a", shape=("N", 4, 1, 1), group=1)
    y = sketch.node("MatMul", y, sketch.random("b.w", 1, 100), name="b", shape=("N", 4, 1, 100))
    target = replace(registry().target("onnxruntime-cpu"), costs=(COSTS,))
    opened = NumpyModel(canonicalize(sketch.graph(y)), sketch.values)
    found = plan(opened, target=target, backend=NumpyBackend())
    assert not found.times
    assert "time         not told: no times are known of " in str(found)
    assert "which hold 0.0004 MB of the weights" in str(found)


def test_what_is_asked_for_is_planned() -> None:
    found = forecast(weights="int4", exclude=["a"])
    assert {node.name: node.runs for node in found.nodes if node.op == "Conv"} == {"a": "float", "b": "integers"}
    assert found.bytes_after == 4 * 108 + 20 / 2
    with pytest.raises(FormatError, match="cannot run weights"):
        forecast(weights="int3")


def test_recipes_are_told_by_a_measured_sample() -> None:
    """Passes by hand: of `fast`, BalanceChannels alone has one of its own, and CorrectBias comes in that of ranges."""
    few, many = ({recipe.recipe: recipe for recipe in forecast(samples=n).recipes} for n in (16, 4096))
    assert few["basic"].passes == (1, 1)
    assert few["fast"].passes == (1, 2)
    assert few["ptq"].passes == (2, 9), "samples held back, three steps with passes, and rounding in groups"
    for name in ("basic", "fast", "ptq"):
        for told in (few[name], many[name]):
            assert told.minutes is not None
            assert told.memory is not None
            assert 0 < told.minutes[0] < told.minutes[1]
            assert 0 < told.memory[0] < told.memory[1]
        assert many[name].minutes[1] > few[name].minutes[1], "more samples take longer"
    assert few["basic"].minutes[1] < few["ptq"].minutes[1]
    assert "measured here" in str(forecast())
    assert "with 16 samples" in str(forecast(samples=16))


def test_what_nobody_knows_is_not_told() -> None:
    """Open sizes, and techniques that others wrote, of which nobody has measured what they take."""
    sketch = Sketch(0)
    x = sketch.input("x", "N", "L", 8)
    y = sketch.node("Linear", x, sketch.random("w", 4, 8), name="a", shape=("N", "L", 4))
    found = plan(NumpyModel(canonicalize(sketch.graph(y)), sketch.values), backend=NumpyBackend())
    assert found.float_pass.milliseconds is None
    assert all(recipe.minutes is None and recipe.memory is None for recipe in found.recipes)
    assert "leaves sizes of x open" in str(found)
    sized = plan(NumpyModel(canonicalize(sketch.graph(y)), sketch.values), np.zeros((3, 5, 8)), backend=NumpyBackend())
    assert [node.multiply_adds for node in (*found.nodes, *sized.nodes)] == [8 * 4, 5 * 8 * 4]
    assert sized.float_pass.milliseconds is not None
    assert "left open" not in str(sized)
    simulation = QuantSim(model(), backend=NumpyBackend()).simulation

    class Foreign(CorrectBias):
        pass

    recipe = Recipe("own", "", (Step(Foreign),))
    told = recipe_forecast(simulation, recipe, 16, 1e6, FloatPass(1.0, "measured"), simulation.graph)
    assert (told.minutes, told.not_told) == (None, "nobody has measured what Foreign takes")


def test_a_model_that_made_up_values_do_not_run_has_the_time_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: CheckedModel, batch: object) -> None:
        raise ModelError("an index is out of range")

    monkeypatch.setattr(CheckedModel, "run", fail)
    found = forecast()
    assert found.times
    assert found.float_pass.milliseconds == found.times[0].in_float
    assert "of the table of a processor, since the model does not run on made-up values" in str(found)
    assert forecast(costs=()).recipes[0].minutes is None


def test_a_time_says_what_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The float model was seen to take longer than its operations do by the table; or sizes are unknown."""
    plain = forecast()
    assert plain.times
    took = 10 * plain.times[0].in_float
    monkeypatch.setattr(plan_model, "float_pass", lambda *_: FloatPass(took, "measured here"))
    narrow, unknown = forecast().unknown
    assert narrow.startswith(
        "100 % of the multiply-adds of convolutions are in grouped ones or ones of fewer than 32 channels"
    )
    assert "here a sample takes 10 times as long in float as these operations do by the table" in unknown
    assert unknown in str(forecast())
    assert forecast().to_dict()["unknown"] == [narrow, unknown]
    monkeypatch.setattr(plan_model, "float_pass", lambda *_: FloatPass(plain.times[0].in_float, "measured here"))
    assert forecast().unknown == (narrow,)


@pytest.mark.parametrize(
    ("minutes", "text"),
    [((0.5, 1.5), "30 to 90 s"), ((0.042, 2.8), "2.5 s to 2.8 min"), ((3.0, 20.0), "3 to 20 min")],
)
def test_each_end_of_a_range_has_a_unit_that_fits(minutes: tuple[float, float], text: str) -> None:
    assert _between(minutes) == text


def test_nothing_in_integers_is_no_conversion() -> None:
    sim = QuantSim(model(), target="onnxruntime-cpu", exclude=["Conv", "Softmax"], backend=NumpyBackend())
    assert _conversions(Groups(sim.simulation)) == (0, 0)


def test_a_recipe_with_a_fault_is_said_and_the_others_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = type(registry()).recipe

    def recipe(self: object, name: str) -> Recipe:
        if name == "basic":
            raise RecipeError("no technique 'Gone'")
        return found(self, name)

    monkeypatch.setattr(type(registry()), "recipe", recipe)
    told = forecast()
    assert "basic" not in {recipe.recipe for recipe in told.recipes}
    assert told.recipes
    assert "nothing is told of recipe 'basic': no technique 'Gone'" in told.notes
