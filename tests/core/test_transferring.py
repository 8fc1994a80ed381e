"""Encodings carried from one graph to another: by structure and content, under other names, never guessed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy_backend import checked
from sketch import Sketch

import isobit
from isobit.backend import CheckedModel
from isobit.canonical import canonicalize
from isobit.encodings import Encoding, encode_weight
from isobit.errors import EncodingError
from isobit.graph import Input, Site, Tensor, Weight
from isobit.placement import QuantConfig
from isobit.plugins import registry
from isobit.quantsim import QuantSim
from isobit.techniques import FoldBatchNorms
from isobit.techniques.context import TechniqueContext

Name = Callable[[str], str]
IMAGE = ("N", 3, 8, 8)


def model_of(sketch: Sketch, *outputs: str) -> CheckedModel:
    graph = canonicalize(sketch.graph(*outputs))
    return checked(graph, {name: sketch.values[info.source or name] for name, info in graph.weights.items()})


def conv(sketch: Sketch, x: str, weight: str, *, name: str, **attributes: object) -> str:
    out = sketch.values[weight].shape[0]
    return sketch.node(
        "Conv", x, weight, name=name, shape=("N", out, 8, 8), group=1, kernel_shape=(1, 1), strides=(1, 1),
        dilations=(1, 1), pads=(0, 0, 0, 0), **attributes,
    )  # fmt: skip


def plain(name: Name = str, *, turned: bool = False, noise: float = 0.0, seed: int = 0) -> CheckedModel:
    """conv, relu, conv; `turned` as exporters of images with the channels last write it."""
    sketch = Sketch(seed)
    x = sketch.input(name("x"), *(("N", 8, 8, 3) if turned else IMAGE))
    if turned:
        x = sketch.node("Transpose", x, name=name("in"), shape=IMAGE, perm=(0, 3, 1, 2))
    for weight in ("w1", "w2"):
        sketch.random(name(weight), 3, 3, 1, 1)
        sketch.values[name(weight)] *= np.float32(1 + noise)
    y = conv(sketch, x, name("w1"), name=name("conv1"))
    y = sketch.node("Relu", y, name=name("relu"), shape=IMAGE)
    y = conv(sketch, y, name("w2"), name=name("conv2"))
    if turned:
        y = sketch.node("Transpose", y, name=name("out"), shape=("N", 8, 8, 3), perm=(0, 2, 3, 1))
    return model_of(sketch, y)


def grids(*names: str) -> dict[Site, Encoding]:
    """A different encoding for each tensor."""
    return {Tensor(name): Encoding.of("uint8", 0.1 * (i + 1), i) for i, name in enumerate(names)}


def weight_grids(model: CheckedModel, *names: str) -> dict[Site, Encoding]:
    spec = isobit.QuantSpec.parse("int8 per-channel")
    return {Weight(name): encode_weight(model.weight(name), spec) for name in names}


def other(name: str) -> str:
    return f"module/{name}:0"


def test_names_do_not_count() -> None:
    source = plain()
    encodings = {**grids("x", "relu", "conv2"), **weight_grids(source, "w1", "w2")}
    result = isobit.transfer(encodings, source, plain(other))
    expected = {type(site)(other(site.name)): encoding for site, encoding in encodings.items()}
    assert dict(result.encodings) == expected
    assert result.complete
    assert result.mapped[Weight("module/w2:0")] == (Weight("w2"),)


def test_added_transposes_carry_the_grid_of_what_they_move() -> None:
    source, target = plain(), plain(other, turned=True)
    encodings = {**grids("x", "relu", "conv2"), **weight_grids(source, "w1", "w2")}
    result = isobit.transfer(encodings, source, target)
    assert result.complete
    assert result.encodings[Tensor("module/in:0")] == result.encodings[Tensor("module/x:0")] == encodings[Tensor("x")]
    assert result.encodings[Tensor("module/out:0")] == encodings[Tensor("conv2")]
    back = isobit.transfer(result.encodings, target, source)
    assert back.complete
    assert dict(back.encodings) == encodings


@pytest.mark.parametrize(("noise", "within_tolerance"), [(5e-7, True), (1e-4, False)])
def test_weights_may_differ_by_the_rounding_of_a_fold(noise: float, within_tolerance: bool) -> None:
    source = plain()
    encodings = weight_grids(source, "w1", "w2")
    if within_tolerance:
        assert isobit.transfer(encodings, source, plain(other, noise=noise)).complete
    else:
        with pytest.raises(EncodingError, match="none of the 2 encodings.*has no counterpart"):
            isobit.transfer(encodings, source, plain(other, noise=noise))


def branches(
    name: Name = str, *, order: tuple[int, int] = (0, 1), alike: bool = False, swap: bool = False
) -> CheckedModel:
    """Two convolutions of one input, added up; `alike` in all they hold, and written down in `order`."""
    sketch = Sketch(3)
    x = sketch.input(name("x"), *IMAGE)
    values = [sketch.rng.standard_normal((3, 3, 1, 1)) for _ in range(2)]
    branch_outputs: dict[int, str] = {}
    for i in order:
        sketch.weight(name(f"w{i}"), values[0 if alike else i])
        branch_outputs[i] = sketch.node(
            "Relu", conv(sketch, x, name(f"w{i}"), name=name(f"conv{i}")), name=name(f"relu{i}"), shape=IMAGE
        )
    operands = (branch_outputs[1], branch_outputs[0]) if swap else (branch_outputs[0], branch_outputs[1])
    return model_of(sketch, sketch.node("Add", *operands, name=name("add"), shape=IMAGE))


def test_branches_are_told_apart_by_what_their_weights_hold() -> None:
    source = branches()
    encodings = {**grids("x", "relu0", "relu1", "add"), **weight_grids(source, "w0", "w1")}
    result = isobit.transfer(encodings, source, branches(other, order=(1, 0), swap=True))
    assert result.complete
    for i in (0, 1):
        assert result.encodings[Tensor(other(f"relu{i}"))] == encodings[Tensor(f"relu{i}")]


def test_the_side_of_a_sum_follows_its_branches() -> None:
    source = branches()
    encodings: dict[Site, Encoding] = {
        Input("add", 0): Encoding.of("uint8", 0.5),
        Input("add", 1): Encoding.of("uint8", 0.7),
    }
    result = isobit.transfer(encodings, source, branches(other, swap=True))
    assert dict(result.encodings) == {
        Input(other("add"), 1): encodings[Input("add", 0)], Input(other("add"), 0): encodings[Input("add", 1)],
    }  # fmt: skip


def test_what_nothing_tells_apart_is_reported_and_not_guessed() -> None:
    source = branches(alike=True)
    result = isobit.transfer(grids("x", "relu0", "relu1", "add"), source, branches(other, alike=True))
    assert set(result.encodings) == {Tensor(other("x")), Tensor(other("add"))}
    assert set(result.unmapped) == {Tensor("relu0"), Tensor("relu1")}
    assert "one of several that nothing tells apart" in result.unmapped[Tensor("relu0")]
    assert "nothing tells apart" in str(result)


def test_alike_branches_with_equal_encodings_leave_nothing_to_guess() -> None:
    source = branches(alike=True)
    encodings = {**grids("x", "add"), **dict.fromkeys((Tensor("relu0"), Tensor("relu1")), Encoding.of("uint8", 0.3))}
    result = isobit.transfer(encodings, source, branches(other, alike=True))
    assert result.complete
    assert result.encodings[Tensor(other("relu1"))] == Encoding.of("uint8", 0.3)


def normalized(name: Name = str, *, bias: bool = False) -> CheckedModel:
    """conv, batch norm, relu, conv."""
    sketch = Sketch(5)
    x = sketch.input(name("x"), *IMAGE)
    for weight in ("w1", "w2"):
        sketch.random(name(weight), 3, 3, 1, 1)
    y = sketch.batch_norm(name("bn"), conv(sketch, x, name("w1"), name=name("conv1")), 3, IMAGE)
    y = sketch.node("Relu", y, name=name("relu"), shape=IMAGE)
    return model_of(sketch, conv(sketch, y, name("w2"), name=name("conv2")))


def folded(model: CheckedModel) -> CheckedModel:
    FoldBatchNorms().apply(TechniqueContext(model))
    return model


def sim_of(model: CheckedModel, target: str = "default") -> QuantSim:
    return QuantSim.of_backend_model(model, registry().target(target), QuantConfig())


def calibrated(model: CheckedModel, target: str = "default") -> QuantSim:
    sim = sim_of(model, target)
    sim.calibrate([{sim.graph.inputs[0]: np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)}])
    return sim


@pytest.mark.parametrize("target", ["default", "onnxruntime-cpu"])
def test_one_side_folded(target: str) -> None:
    source = calibrated(folded(normalized()), target)
    raw, already_folded = normalized(other), folded(normalized(other))
    for target_model in (raw, already_folded):
        result = isobit.transfer(source.encodings, source, target_model)
        assert result.complete, result
        assert set(result.encodings) == set(sim_of(already_folded, target).plan.placements)
    assert "the encodings belong to the folded target" in str(isobit.transfer(source.encodings, source, raw))
    # The source is the model file, and the encodings are those of its folded form.
    refolded = isobit.transfer(source.encodings, normalized(), already_folded)
    assert refolded.complete, refolded


def test_a_weight_is_not_given_the_grid_that_it_had_before_folding() -> None:
    raw = normalized()
    encodings = {**grids("x", "relu"), **weight_grids(raw, "w1", "w2")}
    result = isobit.transfer(encodings, raw, folded(normalized(other)))
    assert set(result.unmapped) == {Weight("w1")}
    assert "before its batch norm is folded" in result.unmapped[Weight("w1")]
    assert result.encodings[Weight(other("w2"))] == encodings[Weight("w2")]


def test_quantizers_of_single_readers_and_of_tensors() -> None:
    """A target with float readers rounds an input for one reader alone; the other rounds the tensor."""
    source, target = calibrated(plain(), "default"), sim_of(plain(other), "onnxruntime-cpu")
    result = isobit.transfer(source.encodings, source, target)
    assert set(result.encodings) == set(target.plan.placements)
    assert not result.missing
    target.calibrate([{other("x"): np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)}])
    back = isobit.transfer(target.encodings, target, sim_of(plain()))
    assert back.complete, back


def test_the_plan_of_a_target_says_what_is_missing() -> None:
    source, target = plain(), sim_of(plain(other))
    result = isobit.transfer(grids("x", "relu"), source, target)
    assert set(result.missing) == set(target.plan.placements) - {Tensor(other("x")), Tensor(other("relu"))}
    assert not result.unmapped


def test_a_site_of_no_model_is_reported() -> None:
    source = plain()
    result = isobit.transfer({**grids("x"), Tensor("nothing"): Encoding.of("uint8", 1.0)}, source, plain(other))
    assert result.unmapped == {Tensor("nothing"): "the source has no such site"}
    assert result.as_data()["unmapped"] == [
        {"source": {"kind": "tensor", "name": "nothing"}, "reason": "the source has no such site"}
    ]


def test_a_layer_that_the_target_lacks_stops_nothing_behind_it() -> None:
    """Its activation is another op in the target: the layer behind it is found by its weight."""
    sketch = Sketch(0)
    x = sketch.input("image", *IMAGE)
    for weight in ("k1", "k2"):
        sketch.random(weight, 3, 3, 1, 1)
    y = sketch.node("Exp", conv(sketch, x, "k1", name="c1"), name="exp", shape=IMAGE)
    target = model_of(sketch, conv(sketch, y, "k2", name="c2"))
    source = plain()
    result = isobit.transfer({**grids("x", "relu", "conv2"), **weight_grids(source, "w1", "w2")}, source, target)
    assert set(result.encodings) == {Tensor("image"), Tensor("c2"), Weight("k1"), Weight("k2"), Tensor("exp")}
    assert result.complete  # the tensor's reader is the same layer, though another op computes the tensor
