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
    found = own_registry(point)
    monkeypatch.setattr("isobit.quantsim.quantsim.registry", lambda: found)


def sim(model: NumpyModel | None = None, **settings: Any) -> QuantSim:
    return QuantSim(model or network(), **settings)


DATA = np.random.default_rng(3).standard_normal((10, 3, 6, 6)).astype(np.float32)


def test_calibration_quantizes_and_stays_near_the_float_model() -> None:
    made = sim()
    made.calibrate(DATA, batch_size=4)
    expected = network().run({"x": DATA})["out0"]
    np.testing.assert_array_equal(made.run_float(DATA)["out0"], expected)
    quantized = made.run(DATA)["out0"]
    error = np.abs(quantized - expected).max()
    assert 0 < error < 0.05 * np.abs(expected).max()
    assert set(made.encodings) == set(made.plan.placements)
    assert made.encodings["flat"] == made.encodings["relu"], "what is only moved has the encoding of its source"
    assert Tensor("flat") not in made.backend_model.encodings()


def test_the_model_is_copied() -> None:
    model = network()
    made = sim(model)
    made.apply(FoldBatchNorms())
    made.calibrate(DATA)
    assert "bn" in model.graph.tensors
    assert len(model.encodings()) == 0


def test_batching_does_not_matter() -> None:
    """The NumPy backend computes in float64, so that the tensors are the same at every batch size."""
    found = []
    for data in (DATA, [DATA[5:], DATA[:5]], [{"x": row[None]} for row in DATA]):
        made = sim()
        made.calibrate(data, "percentile=99", batch_size=3)
        found.append(dict(made.encodings))
    assert found[0] == found[1] == found[2]


def test_recalibration_needs_no_data() -> None:
    made, direct = sim(), sim()
    made.calibrate(DATA, "minmax")
    before = made.encodings["relu"]
    made.recalibrate("percentile=90")
    direct.calibrate(DATA, "percentile=90")
    assert dict(made.encodings) == dict(direct.encodings)
    assert made.encodings["relu"] != before
    with pytest.raises(DataError, match="there are no statistics yet: calibrate with data first"):
        sim().recalibrate("minmax")
    with pytest.raises(FormatError, match="unknown calibration method 'minmix'"):
        made.recalibrate("minmix")


def test_calibrating_again_looks_at_the_float_model() -> None:
    made = sim(activations="uint3")
    made.calibrate(DATA)
    first = dict(made.encodings)
    made.calibrate(DATA)
    assert dict(made.encodings) == first


def test_weights_are_simulated_as_encoded() -> None:
    made = sim(weights="int3")
    made.calibrate(DATA)
    encoding = made.encodings["fc.w"]
    values = network().weight("fc.w")
    assert len(np.unique(encoding.quantize(values))) <= 8
    assert Weight("fc.w") in made.backend_model.encodings()


def test_editing_afterwards_asks_for_another_calibration() -> None:
    made = sim()
    made.calibrate(DATA)
    (report,) = made.apply(FoldBatchNorms())
    assert report.changed == ("bn into conv",)
    assert len(made.statistics) == 0
    with pytest.raises(ModelError, match=re.escape("sites have no encoding yet")):
        made.simulation.require_calibrated()
    made.calibrate(DATA)
    made.simulation.require_calibrated()
    np.testing.assert_allclose(made.run_float(DATA)["out0"], network().run({"x": DATA})["out0"], rtol=1e-4, atol=1e-4)
    assert len(made.simulation.edits) > 0
    assert "FoldBatchNorms: 1 changed, 0 left" in str(made.report)


def test_what_is_frozen_outlives_calibration_until_its_weight_is_edited() -> None:
    made = sim()
    made.apply(FoldBatchNorms())
    made.calibrate(DATA)
    before = made.encodings
    made.freeze([Tensor("relu"), Weight("conv.w"), Weight("fc.w")])
    made.calibrate(3 * DATA)
    assert all(made.encodings[site] == before[site] for site in made.frozen)
    assert made.encodings["x"] != before["x"]
    made.apply(_Doubled())
    assert set(made.frozen) == {Tensor("relu"), Weight("fc.w")}, "new values need an encoding of their own"
    made.thaw()
    made.calibrate(3 * DATA)
    assert made.encodings["relu"] != before["relu"]
    with pytest.raises(EncodingError, match="'nowhere' is not quantized"):
        made.freeze({Tensor("nowhere"): before["x"]})
    with pytest.raises(EncodingError, match="'nowhere' has no encoding to freeze"):
        made.freeze([Tensor("nowhere")])


def test_a_technique_is_undone_with_the_calibration_it_cost() -> None:
    made = sim()
    made.calibrate(DATA)
    before, outputs = made.encodings, made.run(DATA)["out0"]
    checkpoint = made.checkpoint()
    made.apply(_Doubled())
    assert made.calibration is None
    made.roll_back(checkpoint)
    assert made.encodings == before
    assert made.simulation.edits == []
    np.testing.assert_array_equal(made.run(DATA)["out0"], outputs)
    made.recalibrate("percentile=99")


class _Doubled:
    """A technique that changes the weight of the convolution."""

    def apply(self, context: TechniqueContext) -> TechniqueReport:
        context.model.edit([SetWeights({"conv.w": 2 * context.model.weight("conv.w")})])
        return TechniqueReport("Doubled", ("conv.w",))


def test_the_report_tells_what_is_where() -> None:
    made = sim(exclude=["fc"])
    assert "not calibrated" in str(made.report)
    made.calibrate(DATA)
    report = made.report
    assert report.counts == {"activation": 3, "weight": 1, "float": len(report.left_in_float)}
    assert report.left_in_float["fc.w"] == "Linear fc stays in float"
    assert "conv" not in report.left_in_float, "the inside of a fused chain is not listed"
    text = str(report)
    for said in (
        "target        default",
        "operations    1 Conv",
        "3 activations, 1 weight",
        "MinMaxRange()",
        "  fc.w: Linear fc",
    ):
        assert said in text


def test_a_batch_that_does_not_fit_is_refused() -> None:
    made = sim()
    with pytest.raises(
        DataError, match=re.escape("input 'x' in batch 0 has shape (1, 6, 6), and the model takes (N, 3, 6, 6)")
    ):
        made.run(DATA[0][:1])
    with pytest.raises(DataError, match="batch 1 holds NaN"):
        made.calibrate([DATA, DATA * np.nan])


@pytest.mark.parametrize("one_shot", [False, True])
def test_values_that_overflow_inside_are_named_with_their_batch(one_shot: bool) -> None:
    model = network()
    model.weights["conv.w"] = np.full((4, 3, 3, 3), 3e38, np.float32)
    made = sim(model=model)
    quiet = DATA[:2] * 0

    def batches() -> Iterator[Any]:
        yield from (quiet, DATA[:2])

    where = "" if one_shot else " in batch 1"
    with (
        np.errstate(over="ignore"),
        pytest.raises(DataError, match=f"tensor 'relu' holds NaN or infinity{where}, though"),
    ):
        made.calibrate(batches() if one_shot else batches)
    assert len(made.statistics) == 0


@pytest.mark.parametrize(("value", "said"), [(np.nan, "NaN"), (np.inf, "infinity")])
def test_weights_that_are_not_finite_are_named(value: float, said: str) -> None:
    model = network()
    model.weights["fc.w"][0, 0] = value
    with pytest.raises(ModelError, match=f"weight 'fc.w' holds {said}"):
        sim(model=model)


def test_a_failed_calibration_leaves_the_quantizers_on() -> None:
    made = sim()
    made.calibrate(DATA)
    before = made.run(DATA)["out0"]
    with pytest.raises(DataError):
        made.calibrate([DATA, DATA * np.inf])
    np.testing.assert_array_equal(made.run(DATA)["out0"], before)
