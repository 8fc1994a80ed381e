"""Loading encodings into a simulator: strict, partial, freeze, and that an error changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy_backend import checked
from sketch import Sketch

from isobit.canonical import canonicalize
from isobit.encodings import Encoding, Encodings, QuantSpec
from isobit.encodings.same_levels import same_levels
from isobit.errors import DataError, EncodingError, OutputError
from isobit.formats import Names
from isobit.graph import Tensor, Weight
from isobit.placement import QuantConfig
from isobit.plugins import registry
from isobit.quantsim import QuantSim, write_encodings
from isobit.quantsim.checks.encodings_file import check_file

DATA = np.random.default_rng(3).standard_normal((6, 3, 6, 6)).astype(np.float32)


def simulator(*, calibrated: bool = False, **config: Any) -> QuantSim:
    """Conv, Relu, Reshape (tied) and Linear, with biases."""
    sketch = Sketch(0)
    x = sketch.input("x", "N", 3, 6, 6)
    y = sketch.node(
        "Conv",
        x,
        sketch.random("conv.w", 4, 3, 3, 3),
        sketch.random("conv.b", 4),
        name="conv",
        shape=("N", 4, 4, 4),
        group=1,
    )
    y = sketch.node("Relu", y, name="relu", shape=("N", 4, 4, 4))
    y = sketch.node("Reshape", y, name="flat", shape=("N", 64))
    y = sketch.node("Linear", y, sketch.random("fc.w", 5, 64), sketch.random("fc.b", 5), name="fc", shape=("N", 5))
    model = checked(canonicalize(sketch.graph(y)), sketch.values)
    sim = QuantSim.of_backend_model(model, registry().target("default"), QuantConfig(**config))
    if calibrated:
        sim.calibrate(DATA, progress=False)
    return sim


def without(encodings: Encodings, *names: str) -> Encodings:
    return Encodings({site: e for site, e in encodings.items() if str(site) not in names})


def state(sim: QuantSim) -> Any:
    return (
        dict(sim.encodings),
        dict(sim.backend_model.encodings()),
        sim.plan,
        sim.simulation.config,
        sim.calibration,
        dict(sim.frozen),
    )


@pytest.mark.parametrize("form", ["isobit", "aimet-0.6.1", "aimet-1.0.0", "aimet-2.0.0"])
def test_a_file_gives_another_simulator_the_same_bits(form: str, tmp_path: Path) -> None:
    source = simulator(calibrated=True)
    write_encodings(source.encodings, tmp_path / "e", form, source)
    sim = simulator()
    report = sim.load_encodings(tmp_path / "e")
    assert dict(sim.encodings) == dict(source.encodings)
    np.testing.assert_array_equal(sim.run(DATA)["out0"], source.run(DATA)["out0"])
    assert not report.ignored
    assert not report.missing
    assert sim.calibration == f"encodings of {tmp_path / 'e'}"
    with pytest.raises(DataError, match="no statistics yet"):
        sim.recalibrate("percentile")


def test_one_tensor_of_a_tie_speaks_for_all_and_biases_follow() -> None:
    source = simulator(calibrated=True)
    sim = simulator()
    sim.load_encodings(without(source.encodings, "flat", "conv.b", "fc.b"))
    assert dict(sim.encodings) == dict(source.encodings)


def test_strict_names_all_that_does_not_fit_and_changes_nothing() -> None:
    source = simulator(calibrated=True, weights="int4")
    sim = simulator(calibrated=True)
    before = state(sim)
    misfits = Encodings(
        {**source.encodings, Tensor("conv"): Encoding.of("uint8", 1.0), Weight("fc.x"): Encoding.of("int8", 1)}
    )
    with pytest.raises(EncodingError) as error:
        sim.load_encodings(misfits)
    assert "'conv': it is not quantized: inside the fused chain that ends in relu" in str(error.value)
    assert "'fc.x': the model has no such weight (did you mean 'fc.w'?)" in str(error.value)
    assert "(and 1 more)" in str(error.value)
    assert "strict=False" in str(error.value)
    assert state(sim) == before


def test_not_strict_takes_the_formats_of_the_file_and_says_what_it_left() -> None:
    source = simulator(calibrated=True, weights="int4", activations="int16")
    sim = simulator(calibrated=True)
    report = sim.load_encodings(Encodings({**source.encodings, Weight("fc.x"): Encoding.of("int8", 1)}), strict=False)
    assert dict(sim.encodings) == dict(source.encodings)
    assert report.changed["conv.w"] == "int4 symmetric per-channel"
    assert report.ignored == {"fc.x": "the model has no such weight (did you mean 'fc.w'?)"}
    sim.calibrate(DATA, progress=False)
    assert dict(sim.encodings) == dict(source.encodings), "the file's formats stay"
    assert "not used: fc.x" in str(report)


def test_partial_keeps_what_the_file_does_not_say() -> None:
    source, sim = simulator(calibrated=True), simulator(calibrated=True)
    sim.recalibrate("percentile=90")
    relu_before = sim.encodings["relu"]
    report = sim.load_encodings(without(source.encodings, "relu", "flat", "fc.b"))
    assert sim.encodings["relu"] == relu_before
    assert sim.encodings["x"] == source.encodings["x"]
    assert not report.missing
    np.testing.assert_array_equal(
        sim.encodings["fc.b"].scale,
        relu_before.scale * sim.encodings["fc.w"].scale,
        "the bias follows what is there now",
    )
    fresh = simulator()
    assert Tensor("relu") in fresh.load_encodings(without(source.encodings, "relu", "flat", "fc.b")).missing


def test_not_partial_leaves_the_rest_in_float() -> None:
    source, sim = simulator(calibrated=True), simulator(calibrated=True)
    sim.load_encodings(without(source.encodings, "relu", "flat", "fc.b", "fc"), partial=False)
    assert set(map(str, sim.plan.placements)) == {"x", "conv.w", "conv.b", "fc.w"}
    assert sim.report.left_in_float["relu"] == "float by your override"
    sim.simulation.require_calibrated()
    sim.calibrate(DATA, progress=False)
    assert Tensor("relu") not in sim.encodings, "later calibration leaves them alone"


def test_freeze_keeps_what_was_loaded() -> None:
    source = simulator(calibrated=True)
    wide = {site: e for site, e in source.encodings.items() if str(site) == "x"}
    wide[Tensor("x")] = Encoding.of("uint8", 0.5, 100)
    for freeze in (True, False):
        sim = simulator()
        sim.load_encodings(wide, freeze=freeze)
        sim.calibrate(DATA, progress=False)
        assert (sim.encodings["x"] == wide[Tensor("x")]) == freeze
        assert sim.encodings["conv.w"] == source.encodings["conv.w"]


def test_the_axis_of_a_weight_is_that_of_the_graph() -> None:
    sim = simulator()
    wrong = Encoding.of("int8 per-channel", np.full(3, 0.1), axis=1)
    with pytest.raises(EncodingError, match="'conv.w': its scales lie along axis 1, in the graph along 0"):
        sim.load_encodings({Weight("conv.w"): wrong})
    short = Encoding.of("int8 per-channel", np.full(3, 0.1), axis=0)
    with pytest.raises(EncodingError, match="'conv.w': 3 channel scales along axis 0 do not fit"):
        sim.load_encodings({Weight("conv.w"): short})
    assert not sim.encodings


def test_members_of_a_tie_that_disagree() -> None:
    items = {Tensor("relu"): Encoding.of("uint8", 0.5), Tensor("flat"): Encoding.of("uint8", 0.25)}
    sim = simulator()
    with pytest.raises(EncodingError, match="'flat': the target gives it the encoding of 'relu'"):
        sim.load_encodings(items)
    report = sim.load_encodings(items, strict=False)
    assert sim.encodings["flat"] == items[Tensor("relu")]
    assert list(report.ignored) == ["flat"]


def test_one_scale_is_that_of_every_channel() -> None:
    sim = simulator()
    sim.load_encodings({Weight("conv.w"): Encoding.of("int8", 0.5)})
    np.testing.assert_array_equal(sim.encodings["conv.w"].scale, np.full(4, 0.5, np.float32))


@pytest.mark.parametrize(
    ("encoding", "spec", "zero_point"),
    [
        (Encoding.of("uint8", 0.5, 128), "int8", 0),
        (Encoding.of("uint8", 0.5, 3), "int8 asymmetric", -125),
        (Encoding.of("int8", 0.5), "uint8", 128),
        (Encoding.of("uint8", 0.5, 3), "int8", None),
        (Encoding.of("uint8", 0.5, 3), "uint16", None),
        (Encoding.of("int8 strict", 0.5), "int8", None),
        (Encoding.of("float16", 1.0), "int16", None),
    ],
)
def test_the_same_levels_under_another_type(encoding: Encoding, spec: str, zero_point: int | None) -> None:
    moved = same_levels(encoding, QuantSpec.parse(spec))
    assert (None if moved is None else int(moved.zero_point)) == zero_point
    if moved is not None:
        x = np.linspace(-100, 100, 999, dtype=np.float32)
        np.testing.assert_array_equal(moved.fake_quantize(x), encoding.fake_quantize(x))


def test_what_no_encodings_are() -> None:
    with pytest.raises(EncodingError, match="encodings come from a path or from Encodings, not from int"):
        simulator().load_encodings(3)  # type: ignore[arg-type]
    with pytest.raises(EncodingError, match="no encodings format 'aimet' .* known are aimet-0.6.1, aimet-1.0.0"):
        simulator().load_encodings("x.encodings", format="aimet")


def test_a_file_that_lacks_an_encoding_is_no_export(tmp_path: Path) -> None:
    sim = simulator(calibrated=True)
    names = Names.of(sim)
    path = tmp_path / "m.encodings"
    for form in ("aimet-1.0.0", "isobit"):
        write_encodings(sim.encodings, path, form, names)
        check_file(path, registry().format(form), sim.encodings, names, sim.plan)
        write_encodings(without(sim.encodings, "relu"), path, form, names)
        with pytest.raises(OutputError, match="m.encodings has no encoding for 'relu', which the target quantizes"):
            check_file(path, registry().format(form), sim.encodings, names, sim.plan)
        write_encodings(Encodings({**sim.encodings, Tensor("x"): Encoding.of("uint8", 9.0)}), path, form, names)
        with pytest.raises(OutputError, match="has another encoding for 'x' than the simulator"):
            check_file(path, registry().format(form), sim.encodings, names, sim.plan)
