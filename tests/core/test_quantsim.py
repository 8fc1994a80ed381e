"""QuantSim over the NumPy backend: the facade's own behaviour, without any framework."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy_backend import NumpyBackend, NumpyModel
from registries import own_registry
from sketch import Sketch

from isobit.canonical import canonicalize
from isobit.edits import SetWeights
from isobit.errors import DataError, EncodingError, FormatError, ModelError
from isobit.graph import Tensor, Weight
from isobit.plugins import hookimpl
from isobit.quantsim import QuantSim
from isobit.quantsim.quantize import quantize
from isobit.techniques import FoldBatchNorms, TechniqueReport
from isobit.techniques.context import TechniqueContext

IMAGE = ("N", 3, 6, 6)


def network(seed: int = 0) -> NumpyModel:
    sketch = Sketch(seed)
    x = sketch.input("x", *IMAGE)
    y = sketch.node("Conv", x, sketch.random("conv.w", 4, 3, 3, 3), name="conv", shape=("N", 4, 4, 4), group=1)
    y = sketch.batch_norm("bn", y, 4, ("N", 4, 4, 4))
    y = sketch.node("Relu", y, name="relu", shape=("N", 4, 4, 4))
    y = sketch.node("Reshape", y, name="flat", shape=("N", 64))
    y = sketch.node("Linear", y, sketch.random("fc.w", 5, 64), sketch.random("fc.b", 5), name="fc", shape=("N", 5))
    return NumpyModel(canonicalize(sketch.graph(y)), sketch.values)


@pytest.fixture(autouse=True)
def _numpy_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry knows the NumPy backend and no other."""

    @hookimpl
    def isobit_backends() -> list[NumpyBackend]:
        return [NumpyBackend()]

    point = SimpleNamespace(name="numpy", value="here", dist=None)
    point.load = lambda: SimpleNamespace(isobit_backends=isobit_backends)
    registry = own_registry(point)
    monkeypatch.setattr("isobit.quantsim.quantsim.registry", lambda: registry)


def sim(model: NumpyModel | None = None, **settings: Any) -> QuantSim:
    return QuantSim(model or network(), **settings)


DATA = np.random.default_rng(3).standard_normal((10, 3, 6, 6)).astype(np.float32)


def test_calibration_quantizes_and_stays_near_the_float_model() -> None:
    simulator = sim()
    simulator.calibrate(DATA, batch_size=4)
    expected = network().run({"x": DATA})["out0"]
    np.testing.assert_array_equal(simulator.run_float(DATA)["out0"], expected)
    quantized = simulator.run(DATA)["out0"]
    error = np.abs(quantized - expected).max()
    assert 0 < error < 0.05 * np.abs(expected).max()
    assert set(simulator.encodings) == set(simulator.plan.placements)
    assert simulator.encodings["flat"] == simulator.encodings["relu"], (
        "what is only moved has the encoding of its source"
    )
    assert Tensor("flat") not in simulator.backend_model.encodings()


def test_the_model_is_copied() -> None:
    model = network()
    simulator = sim(model)
    simulator.apply(FoldBatchNorms())
    simulator.calibrate(DATA)
    assert "bn" in model.graph.tensors
    assert len(model.encodings()) == 0


def test_batching_does_not_matter() -> None:
    """The NumPy backend computes in float64, so that the tensors are the same at every batch size."""
    encodings = []
    for data in (DATA, [DATA[5:], DATA[:5]], [{"x": row[None]} for row in DATA]):
        simulator = sim()
        simulator.calibrate(data, "percentile=99", batch_size=3)
        encodings.append(dict(simulator.encodings))
    assert encodings[0] == encodings[1] == encodings[2]


def test_recalibration_needs_no_data() -> None:
    simulator, direct = sim(), sim()
    simulator.calibrate(DATA, "minmax")
    before = simulator.encodings["relu"]
    simulator.recalibrate("percentile=90")
    direct.calibrate(DATA, "percentile=90")
    assert dict(simulator.encodings) == dict(direct.encodings)
    assert simulator.encodings["relu"] != before
    with pytest.raises(DataError, match="there are no statistics yet: calibrate with data first"):
        sim().recalibrate("minmax")
    with pytest.raises(FormatError, match="unknown calibration method 'minmix'"):
        simulator.recalibrate("minmix")


def test_calibrating_again_looks_at_the_float_model() -> None:
    simulator = sim(activations="uint3")
    simulator.calibrate(DATA)
    first = dict(simulator.encodings)
    simulator.calibrate(DATA)
    assert dict(simulator.encodings) == first


def test_weights_are_simulated_as_encoded() -> None:
    simulator = sim(weights="int3")
    simulator.calibrate(DATA)
    encoding = simulator.encodings["fc.w"]
    values = network().weight("fc.w")
    assert len(np.unique(encoding.quantize(values))) <= 8
    assert Weight("fc.w") in simulator.backend_model.encodings()


def test_editing_afterwards_asks_for_another_calibration() -> None:
    simulator = sim()
    simulator.calibrate(DATA)
    (report,) = simulator.apply(FoldBatchNorms())
    assert report.changed == ("bn into conv",)
    assert len(simulator.statistics) == 0
    with pytest.raises(ModelError, match=re.escape("sites have no encoding yet")):
        simulator.simulation.require_calibrated()
    simulator.calibrate(DATA)
    simulator.simulation.require_calibrated()
    np.testing.assert_allclose(
        simulator.run_float(DATA)["out0"], network().run({"x": DATA})["out0"], rtol=1e-4, atol=1e-4
    )
    assert len(simulator.simulation.edits) > 0
    assert "FoldBatchNorms: 1 changed, 0 left" in str(simulator.report)


def test_what_is_frozen_outlives_calibration_until_its_weight_is_edited() -> None:
    simulator = sim()
    simulator.apply(FoldBatchNorms())
    simulator.calibrate(DATA)
    before = simulator.encodings
    simulator.freeze([Tensor("relu"), Weight("conv.w"), Weight("fc.w")])
    simulator.calibrate(3 * DATA)
    assert all(simulator.encodings[site] == before[site] for site in simulator.frozen)
    assert simulator.encodings["x"] != before["x"]
    simulator.apply(_Doubled())
    assert set(simulator.frozen) == {Tensor("relu"), Weight("fc.w")}, "new values need an encoding of their own"
    simulator.thaw()
    simulator.calibrate(3 * DATA)
    assert simulator.encodings["relu"] != before["relu"]
    with pytest.raises(EncodingError, match="'nowhere' is not quantized"):
        simulator.freeze({Tensor("nowhere"): before["x"]})
    with pytest.raises(EncodingError, match="'nowhere' has no encoding to freeze"):
        simulator.freeze([Tensor("nowhere")])


def test_a_technique_is_undone_with_the_calibration_it_cost() -> None:
    simulator = sim()
    simulator.calibrate(DATA)
    before, outputs = simulator.encodings, simulator.run(DATA)["out0"]
    checkpoint = simulator.checkpoint()
    simulator.apply(_Doubled())
    assert simulator.calibration is None
    simulator.roll_back(checkpoint)
    assert simulator.encodings == before
    assert simulator.simulation.edits == []
    np.testing.assert_array_equal(simulator.run(DATA)["out0"], outputs)
    simulator.recalibrate("percentile=99")


class _Doubled:
    """A technique that changes the weight of the convolution."""

    def apply(self, context: TechniqueContext) -> TechniqueReport:
        context.model.edit([SetWeights({"conv.w": 2 * context.model.weight("conv.w")})])
        return TechniqueReport("Doubled", ("conv.w",))


def test_the_report_tells_what_is_where() -> None:
    simulator = sim(exclude=["fc"])
    assert "not calibrated" in str(simulator.report)
    simulator.calibrate(DATA)
    report = simulator.report
    assert report.counts == {"activation": 3, "weight": 1, "float": len(report.left_in_float)}
    assert report.left_in_float["fc.w"] == "Linear fc stays in float"
    assert "conv" not in report.left_in_float, "the inside of a fused chain is not listed"
    text = str(report)
    for line in (
        "target        default",
        "operations    1 Conv",
        "3 activations, 1 weight",
        "MinMaxRange()",
        "  fc.w: Linear fc",
    ):
        assert line in text


def test_a_batch_that_does_not_fit_is_refused() -> None:
    simulator = sim()
    with pytest.raises(
        DataError, match=re.escape("input 'x' in batch 0 has shape (1, 6, 6), and the model takes (N, 3, 6, 6)")
    ):
        simulator.run(DATA[0][:1])
    with pytest.raises(DataError, match="batch 1 holds NaN"):
        simulator.calibrate([DATA, DATA * np.nan])


@pytest.mark.parametrize("one_shot", [False, True])
def test_values_that_overflow_inside_are_named_with_their_batch(one_shot: bool) -> None:
    model = network()
    model.weights["conv.w"] = np.full((4, 3, 3, 3), 3e38, np.float32)
    simulator = sim(model=model)
    quiet = DATA[:2] * 0

    def batches() -> Iterator[Any]:
        yield from (quiet, DATA[:2])

    where = "" if one_shot else " in batch 1"
    with (
        np.errstate(over="ignore"),
        pytest.raises(DataError, match=f"tensor 'relu' holds NaN or infinity{where}, though"),
    ):
        simulator.calibrate(batches() if one_shot else batches)
    assert len(simulator.statistics) == 0


@pytest.mark.parametrize(("value", "message"), [(np.nan, "NaN"), (np.inf, "infinity")])
def test_weights_that_are_not_finite_are_named(value: float, message: str) -> None:
    model = network()
    model.weights["fc.w"][0, 0] = value
    with pytest.raises(ModelError, match=f"weight 'fc.w' holds {message}"):
        sim(model=model)


def test_a_failed_calibration_leaves_the_quantizers_on() -> None:
    simulator = sim()
    simulator.calibrate(DATA)
    before = simulator.run(DATA)["out0"]
    with pytest.raises(DataError):
        simulator.calibrate([DATA, DATA * np.inf])
    np.testing.assert_array_equal(simulator.run(DATA)["out0"], before)


@pytest.mark.parametrize(
    ("settings", "target"),
    [
        ({}, "onnxruntime-cpu"),
        ({"weights": "int4 block=8"}, "onnxruntime-cpu"),
        ({"overrides": {"fc": "int16", "conv.w": None}}, "onnxruntime-cpu"),
        ({"weights": "int3"}, "default"),
        ({"weights": "int4 lpbq=8"}, "default"),
        ({"activations": "float16"}, "default"),
        ({"overrides": {"fc.w": "int5"}}, "default"),
        ({"weights": "int3", "target": "default"}, "default"),
    ],
)
def test_a_target_that_was_not_named_has_the_formats(settings: dict[str, Any], target: str) -> None:
    data = [np.random.default_rng(0).standard_normal((4, 3, 6, 6)).astype(np.float32)]
    sim = quantize(network(), data, recipe="basic", method="minmax", **settings)
    assert sim.target.name == target
    notes = [note for note in sim.report.notes if "quantized for target 'default'" in note]
    assert bool(notes) == (target == "default" and "target" not in settings)
    if notes:
        with pytest.raises(FormatError, match="'default' runs all formats|cannot run"):
            quantize(network(), data, target="onnxruntime-cpu", **settings)
