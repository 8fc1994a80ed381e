"""Phases, indices, denominators and squares before a root or a logarithm stay in float, and the plan says why."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from registries import rounds_all
from sketch import Sketch

from isobit.canonical import canonicalize
from isobit.graph import Graph, Input, Shape, Tensor, Weight
from isobit.placement import QuantConfig, place
from isobit.targets import Target

TARGETS = [rounds_all(name) for name in ("default", "onnxruntime-cpu")]
ROW = ("N", 8)


def layer(sketch: Sketch, x: str, name: str, size: int = 8) -> str:
    return sketch.node("MatMul", x, sketch.random(f"{name}.w", size, 8), name=name, shape=ROW)


def scaled(sketch: Sketch, x: str, name: str, shape: Shape = ROW) -> str:
    return sketch.node("Mul", x, sketch.weight(f"{name}.k", 3.5), name=name, shape=shape)


def closed(sketch: Sketch, x: str) -> Graph:
    layer(sketch, x, "last")
    return canonicalize(sketch.graph("last"))


def time_embedding() -> Graph:
    sketch = Sketch()
    phase = sketch.node("Mul", sketch.input("t", "N", 1), sketch.random("k", 8), name="phase", shape=ROW)
    sine, cosine = (sketch.node(op, phase, name=op.lower(), shape=ROW) for op in ("Sin", "Cos"))
    both = sketch.node("Concat", sine, cosine, name="both", shape=("N", 16), axis=1)
    layer(sketch, both, "last", 16)
    return canonicalize(sketch.graph("last"))


def phase_of_a_layer() -> Graph:
    sketch = Sketch()
    hidden = layer(sketch, sketch.node("Relu", layer(sketch, sketch.input("x", *ROW), "a"), name="r", shape=ROW), "b")
    phase = scaled(
        sketch, sketch.node("Transpose", hidden, name="moved", shape=(8, "N"), perm=(1, 0)), "phase", (8, "N")
    )
    sine = sketch.node("Sin", phase, name="sin", shape=(8, "N"))
    return closed(sketch, sketch.node("Transpose", sine, name="back", shape=ROW, perm=(1, 0)))


def magnitudes(root: str) -> Graph:
    sketch = Sketch()
    x = sketch.input("x", *ROW)
    half = layer(sketch, x, "re"), layer(sketch, x, "im")
    first = sketch.node("Mul", half[0], half[0], name="re2", shape=ROW)
    second = sketch.node("Pow", half[1], sketch.weight("two", 2.0), name="im2", shape=ROW)
    power = sketch.node("Add", first, second, name="power", shape=ROW)
    operands = (power, sketch.weight("half", 0.5)) if root == "Pow" else (power,)
    return closed(sketch, sketch.node(root, *operands, name="root", shape=ROW))


def denominator(op: str) -> Graph:
    sketch = Sketch()
    h = layer(sketch, sketch.input("x", *ROW), "h")
    length = sketch.node("ReduceL2", h, name="length", shape=("N", 1), axes=(1,), keepdims=1)
    bounded = sketch.node("Add", length, sketch.weight("eps", 1e-3), name="bounded", shape=("N", 1))
    if op == "Div":
        return closed(sketch, sketch.node("Div", h, bounded, name="unit", shape=ROW))
    inverse = sketch.node("Reciprocal", bounded, name="inverse", shape=("N", 1))
    return closed(sketch, sketch.node("Mul", h, inverse, name="unit", shape=ROW))


def index() -> Graph:
    sketch = Sketch()
    place_ = sketch.node("Floor", scaled(sketch, sketch.input("x", *ROW), "wide"), name="floor", shape=ROW)
    rows = sketch.node("Cast", place_, name="rows", shape=ROW, dtype="int64", to="int64")
    found = sketch.node("Gather", sketch.random("table", 50, 8), rows, name="found", shape=("N", 8, 8), axis=0)
    sketch.node("MatMul", found, sketch.random("last.w", 8, 8), name="last", shape=("N", 8, 8))
    return canonicalize(sketch.graph("last"))


def length(op: str) -> Graph:
    """Durations are rounded and added up: how far a row reaches."""
    sketch = Sketch()
    x = sketch.input("x", *ROW)
    sketch.node("Ceil", layer(sketch, x, "b"), name="durations", shape=ROW)
    if op == "CumSum":
        shape, total = ROW, sketch.node(op, "durations", sketch.weight("axis", 1, "int64"), name="total", shape=ROW)
    else:
        shape = ("N", 1)
        total = sketch.node(op, "durations", name="total", shape=shape, axes=(1,), keepdims=1)
    rows = sketch.node("Cast", total, name="rows", shape=shape, dtype="int64", to="int64")
    found = sketch.node("Gather", sketch.random("table", 50, 8), rows, name="found", shape=(*shape, 8), axis=0)
    sketch.node("MatMul", found, sketch.random("last.w", 8, 8), name="last", shape=(*shape, 8))
    return canonicalize(sketch.graph("last"))


NETWORKS: dict[str, tuple[Graph, set[str]]] = {
    "time": (time_embedding(), {"t", "phase"}),
    "layer": (phase_of_a_layer(), {"b", "moved", "phase"}),
    **{f"magnitude {op}": (magnitudes(op), {"re2", "im2", "power"}) for op in ("Sqrt", "Log", "Pow")},
    **{f"denominator {op}": (denominator(op), {"bounded", "length"}) for op in ("Div", "Reciprocal")},
    "index": (index(), {"x", "wide", "floor"}),
    **{f"length {op}": (length(op), {"durations", "total"}) for op in ("ReduceSum", "ReduceMax", "CumSum")},
}
WORDS = ("reads it as a phase", "small values count", "divides by it", "makes whole numbers of it")


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize("name", NETWORKS)
def test_they_stay_in_float_with_the_reason_and_weights_do_not(name: str, target: Target) -> None:
    graph, exact = NETWORKS[name]
    plan = place(graph, target)
    for tensor in exact & graph.tensors.keys():
        assert any(word in plan.floats[tensor] for word in WORDS), (tensor, plan.floats.get(tensor))
        assert Tensor(tensor) not in plan.placements
    layers = [weight for weight in graph.weights if weight.endswith(".w")]
    assert layers
    assert all(Weight(weight) in plan.placements for weight in layers)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_an_override_wins(target: Target) -> None:
    graph, _ = NETWORKS["magnitude Sqrt"]
    plan = place(graph, target, QuantConfig(overrides={"power": "uint8"}))
    assert plan.placements[Tensor("power")].spec.bits == 8
    assert place(graph, target, QuantConfig(exclude="power")).floats["power"] == "excluded by you"


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_layer_that_others_read_keeps_its_grid(target: Target) -> None:
    sketch = Sketch()
    h = layer(sketch, sketch.input("x", *ROW), "h")
    wave = sketch.node("Sin", scaled(sketch, h, "phase"), name="sin", shape=ROW)
    graph = closed(sketch, sketch.node("Add", h, wave, name="sum", shape=ROW))
    plan = place(graph, target)
    assert Tensor("h") in plan.placements
    assert "phase" in plan.floats


@pytest.mark.parametrize("root", ["Sqrt", "Log"])
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_frequencies_and_squares_that_a_layer_reads_have_16_bits_or_none(target: Target, root: str) -> None:
    """16 bits hold the squares behind a root, and not the decades that a logarithm looks at."""
    sketch = Sketch()
    phase = layer(sketch, sketch.input("x", "N", 3), "frequencies", 3)
    h = layer(sketch, sketch.node("Sin", phase, name="sin", shape=ROW), "h")
    power = sketch.node("Mul", h, h, name="power", shape=ROW)
    bands = layer(sketch, power, "bands")
    graph = closed(sketch, sketch.node(root, bands, name="root", shape=ROW))
    plan = place(graph, target)
    assert plan.placements[Tensor("x")].spec.type_name == "uint16"
    assert plan.placements[Weight("frequencies.w")].spec.type_name == "int16"
    read = plan.placements.get(Input("bands", 0))
    assert (read and read.spec.type_name) == ("uint16" if root == "Sqrt" else None)
    assert plan.placements[Weight("bands.w")].spec.type_name == "int8"
    assert {"frequencies", "power", "bands"} <= plan.floats.keys()
    assert len(plan.notes) == (2 if root == "Sqrt" else 1)
    asked = place(graph, target, QuantConfig(overrides={"x": "uint8", "power": "uint8"}))
    assert all(p.spec.bits == 8 for p in asked.placements.values() if p.kind == "activation")


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_masked_signal_is_still_one_and_bands_may_be_of_magnitudes(target: Target) -> None:
    """Samples behind the end are set to zero by a mask of lengths and sizes; a root comes before the bands."""
    sketch = Sketch()
    x = sketch.input("x", *ROW)
    size = sketch.node("Shape", x, name="size", shape=(1,), dtype="int64", start=1)
    length = sketch.input("length", "N", 1, dtype="int64")
    mask = sketch.node("Less", size, length, name="mask", shape=("N", 1), dtype="bool")
    masked = sketch.node("Where", mask, x, sketch.weight("zero", 0.0), name="masked", shape=ROW)
    filtered = layer(sketch, masked, "filter")
    power = sketch.node("Mul", filtered, filtered, name="power", shape=ROW)
    bands = layer(sketch, sketch.node("Sqrt", power, name="magnitude", shape=ROW), "bands")
    plan = place(closed(sketch, sketch.node("Log", bands, name="log", shape=ROW)), target)
    assert plan.placements[Weight("filter.w")].spec.type_name == "int16"
    assert plan.placements[Tensor("masked")].spec.type_name == "uint16"
    assert Input("bands", 0) not in plan.placements
    assert Tensor("magnitude") not in plan.placements


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_tensor_that_is_moved_to_a_phase_and_to_a_layer(target: Target) -> None:
    sketch = Sketch()
    x = sketch.node("Sigmoid", sketch.input("x", *ROW), name="s", shape=ROW)
    moved = sketch.node("Transpose", x, name="moved", shape=(8, "N"), perm=(1, 0))
    wave = sketch.node("Sin", moved, name="sin", shape=(8, "N"))
    layer(sketch, x, "h")
    plan = place(canonicalize(sketch.graph("h", wave)), target)
    assert Input("h", 0) in plan.placements
    assert {"s", "moved"} <= plan.floats.keys()


@pytest.mark.parametrize("first", ["Sqrt", "Log"])
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_bands_that_a_root_and_a_logarithm_read_stay_in_float(target: Target, first: str) -> None:
    """The logarithm asks for more, whichever of them comes first; an epsilon may stand before the squares."""
    sketch = Sketch()
    x = sketch.input("x", *ROW)
    power = sketch.node("Mul", x, x, name="power", shape=ROW)
    above = sketch.node("Add", sketch.weight("least", 1e-9), power, name="above", shape=ROW)
    bands = layer(sketch, above, "bands")
    ops = (first, "Log" if first == "Sqrt" else "Sqrt")
    read = [sketch.node(op, bands, name=op.lower(), shape=ROW) for op in ops]
    plan = place(closed(sketch, sketch.node("Add", *read, name="both", shape=ROW)), target)
    assert Input("bands", 0) not in plan.placements
    assert Tensor("above") not in plan.placements
    assert "logarithm" in plan.floats["bands"]


def scaled_power(sketch: Sketch, h: str) -> str:
    power = sketch.node("Mul", h, h, name="power", shape=ROW)
    return sketch.node("Mul", power, sketch.weight("k", 0.01), name="end", shape=ROW)


def factor_within(sketch: Sketch, h: str) -> str:
    """x * (x * c), the factor first or last, as exporters order it."""
    less = sketch.node("Mul", sketch.weight("k", 0.01), h, name="less", shape=ROW)
    return sketch.node("Mul", h, less, name="end", shape=ROW)


def both_scaled(sketch: Sketch, h: str) -> str:
    less = [sketch.node(op, h, sketch.weight(f"k.{op}", 2.0), name=op, shape=ROW) for op in ("Mul", "Div")]
    return sketch.node("Mul", *less, name="end", shape=ROW)


def magnitude(sketch: Sketch, h: str) -> str:
    return sketch.node("Abs", h, name="end", shape=ROW)


def largest_magnitude(sketch: Sketch, h: str) -> str:
    size = sketch.node("Abs", h, name="size", shape=ROW)
    power = sketch.node("Pow", size, sketch.weight("two", 2.0), name="power", shape=ROW)
    return sketch.node("Max", power, sketch.weight("least", 1e-9), name="end", shape=ROW)


def norm(op: str) -> Callable[[Sketch, str], str]:
    def made(sketch: Sketch, h: str) -> str:
        length = sketch.node(op, h, name="length", shape=("N", 1), axes=(1,), keepdims=1)
        return sketch.node("Concat", *[length] * 8, name="end", shape=ROW, axis=1)

    return made


POWERS = [scaled_power, factor_within, both_scaled, magnitude, largest_magnitude, norm("ReduceL1"), norm("ReduceL2")]


@pytest.mark.parametrize("made", POWERS)
@pytest.mark.parametrize("has_bands", [False, True])
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_any_spelling_of_a_power_before_a_logarithm(
    target: Target, has_bands: bool, made: Callable[[Sketch, str], str]
) -> None:
    sketch = Sketch()
    h = layer(sketch, sketch.input("x", *ROW), "filter")
    end = made(sketch, h)
    if has_bands:
        end = layer(sketch, end, "bands")
    plan = place(closed(sketch, sketch.node("Log", end, name="log", shape=ROW)), target)
    assert {"end", "filter"} <= plan.floats.keys()
    assert plan.placements[Tensor("x")].spec.type_name == "uint16"
    assert plan.placements[Weight("filter.w")].spec.type_name == "int16"
    assert Input("bands", 0) not in plan.placements


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_bands_may_stand_on_the_left_of_a_product(target: Target) -> None:
    """filters @ power, as Whisper has it; and a root needs 16 bits there."""
    sketch = Sketch()
    frames = sketch.node("Unsqueeze", sketch.input("x", *ROW), name="rows", shape=("N", 8, 1), axes=(2,))
    spectrum = sketch.node(
        "MatMul", sketch.weight("filters", np.ones((8, 8))), frames, name="filter", shape=("N", 8, 1)
    )
    power = sketch.node("Mul", spectrum, spectrum, name="power", shape=("N", 8, 1))
    bands = sketch.node("MatMul", sketch.weight("bands.w", np.ones((8, 8))), power, name="bands", shape=("N", 8, 1))
    for op in ("Log", "Sqrt"):
        read = sketch.node(op, bands, name=op.lower(), shape=("N", 8, 1))
    plan = place(closed(sketch, sketch.node("Flatten", read, name="flat", shape=ROW)), target)
    assert {"power", "filter", "bands"} <= plan.floats.keys()
    assert not {Input("bands", 1), Tensor("power")} & plan.placements.keys()
    assert plan.placements[Tensor("rows")].spec.type_name == "uint16"
    assert plan.placements[Weight("filters")].spec.type_name == "uint16"


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_product_of_two_signals_is_no_power(target: Target) -> None:
    sketch = Sketch()
    x = sketch.input("x", *ROW)
    gated = sketch.node("Mul", layer(sketch, x, "a"), layer(sketch, x, "b"), name="gated", shape=ROW)
    plan = place(closed(sketch, sketch.node("Log", layer(sketch, gated, "c"), name="log", shape=ROW)), target)
    assert plan.placements[Input("c", 0) if Input("c", 0) in plan.placements else Tensor("gated")].spec.bits == 8


@pytest.mark.parametrize(
    ("op", "operands"), [("DeformConv", "image kernel places"), ("RoiAlign", "image places rows"),
                         ("GridSample", "image places")]
)  # fmt: skip
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_places_in_an_image_stay_in_float(target: Target, op: str, operands: str) -> None:
    """Offsets, boxes and grids, with what they are moved and scaled from; the layer's weight is an integer."""
    sketch = Sketch()
    image = sketch.input("image", "N", 4, 6, 6)
    gate = sketch.node("Relu", image, name="gate", shape=("N", 4, 6, 6))
    made = sketch.node("Conv", gate, sketch.random("made.w", 8, 4, 3, 3), name="made", shape=("N", 8, 4, 4), group=1)
    places = sketch.node("Mul", made, sketch.weight("k", 3.0), name="places", shape=("N", 8, 4, 4))
    sketch.random("kernel", 6, 4, 3, 3)
    sketch.weight("rows", [0], "int64")
    y = sketch.node(op, *operands.split(), name="read", shape=("N", 6, 4, 4))
    y = sketch.node("Conv", y, sketch.random("last.w", 3, 6, 1, 1), name="last", shape=("N", 3, 4, 4), group=1)
    plan = place(canonicalize(sketch.graph(y)), target)
    assert {places, made} <= plan.floats.keys()
    assert "reads it as positions" in plan.floats[made]
    assert plan.placements[Weight("made.w")].spec.bits == 8


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_what_a_grid_is_made_of_is_as_exact_as_the_grid(target: Target) -> None:
    sketch = Sketch()
    theta = layer(sketch, sketch.node("Relu", sketch.input("x", *ROW), name="gate", shape=ROW), "made")
    theta = sketch.node("Reshape", theta, name="theta", shape=("N", 2, 4))
    size = sketch.weight("size", [1, 4, 6, 6], "int64")
    grid = sketch.node("AffineGrid", theta, size, name="grid", shape=("N", 6, 6, 2))
    image = sketch.input("image", "N", 4, 6, 6)
    y = sketch.node("GridSample", image, grid, name="read", shape=("N", 4, 6, 6))
    y = sketch.node("Conv", y, sketch.random("last.w", 3, 4, 1, 1), name="last", shape=("N", 3, 6, 6), group=1)
    plan = place(canonicalize(sketch.graph(y)), target)
    assert {"made", "theta", "grid"} <= plan.floats.keys()
    assert plan.placements[Weight("made.w")].spec.bits == 8


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize(("rows", "mixed", "bits"), [(2, 3, 16), (2, 2, 16), (3, 4, 16), (2, 23, 16), (36, 8, 8)])
def test_coordinates_that_a_layer_maps_to_places_have_16_bits(target: Target, rows: int, mixed: int, bits: int) -> None:
    """Affine maps in the plane and in space, a rotation, a spline; offsets that a layer makes of features do not."""
    sketch = Sketch()
    theta = sketch.node("Relu", sketch.input("x", "N", rows, mixed), name="theta", shape=("N", rows, mixed))
    size = 36 if bits == 16 else 2
    mapped = sketch.node("MatMul", theta, sketch.random("base", mixed, size), name="mapped", shape=("N", rows, size))
    if bits == 16:
        mapped = sketch.node("Transpose", mapped, name="turned", shape=("N", size, rows), perm=(0, 2, 1))
    grid = sketch.node("Reshape", mapped, name="grid", shape=("N", 6, 6, min(rows, size)))
    y = sketch.node("GridSample", sketch.input("image", "N", 4, 6, 6), grid, name="read", shape=("N", 4, 6, 6))
    y = sketch.node("Conv", y, sketch.random("last.w", 3, 4, 1, 1), name="last", shape=("N", 3, 6, 6), group=1)
    plan = place(canonicalize(sketch.graph(y)), target)
    assert {"mapped", "grid"} <= plan.floats.keys()
    assert plan.placements[Tensor("theta")].spec.bits == bits
    assert plan.placements[Weight("base")].spec.bits == bits


def tokens(sketch: Sketch) -> str:
    """A residual stream that begins with a table, behind a norm and a layer."""
    shape = ("N", 6, 8)
    ids = sketch.input("ids", "N", 6, dtype="int64")
    table = sketch.node("Gather", sketch.random("table", 20, 8), ids, name="embedding", shape=shape)
    ones = sketch.weight("gain", [1.0] * 8)
    normed = sketch.node("RMSNormalization", table, ones, name="norm", shape=shape, axis=-1)
    made = sketch.node("MatMul", normed, sketch.random("made.w", 8, 8), name="made", shape=shape)
    return sketch.node("Add", table, made, name="stream", shape=shape)


def gated_pixels(sketch: Sketch) -> str:
    """Pixels of 8 bits, of which an activation is a factor."""
    pixels = sketch.node("Cast", sketch.input("pixels", *ROW, dtype="uint8"), name="pixels.float", shape=ROW)
    hidden = layer(sketch, pixels, "made")
    gate = sketch.node("Relu", hidden, name="gate", shape=ROW)
    return sketch.node("Mul", pixels, gate, name="gated", shape=ROW)


def largest(sketch: Sketch) -> str:
    """The largest of neighbours."""
    made = layer(sketch, sketch.input("x", *ROW), "made")
    pairs = sketch.node("Reshape", made, sketch.weight("pairs", [0, 4, 2], "int64"), name="pairs.of", shape=("N", 4, 2))
    axis = sketch.weight("axis", [2], "int64")
    return sketch.node("ReduceMax", pairs, axis, name="largest", shape=("N", 4), keepdims=0)


@pytest.mark.parametrize("made", [tokens, gated_pixels, largest])
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_what_is_no_linear_function_of_an_input_is_no_spectrum(target: Target, made: Callable[[Sketch], str]) -> None:
    """Its squares before a root leave layers in 8 bits: a norm that is written out stands in any transformer."""
    sketch = Sketch()
    x = made(sketch)
    shape = sketch.graph(x).tensors[x].shape or ()
    wide = (*shape[:-1], 8)
    filtered = sketch.node("MatMul", x, sketch.random("filter.w", shape[-1], 8), name="filter", shape=wide)
    power = sketch.node("Mul", filtered, filtered, name="power", shape=wide)
    root = sketch.node("Sqrt", power, name="root", shape=wide)
    sketch.node("MatMul", root, sketch.random("last.w", 8, 8), name="last", shape=wide)
    plan = place(canonicalize(sketch.graph("last")), target)
    weights = {str(site): p.spec.bits for site, p in plan.placements.items() if isinstance(site, Weight)}
    assert weights["filter.w"] == weights["made.w"] == 8


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_powers_that_a_pooling_averages_before_a_logarithm(target: Target) -> None:
    """As networks for brain waves begin (Schirrmeister et al., 2017): filters, squares, means, a logarithm."""
    sketch = Sketch()
    x = sketch.input("x", "N", 2, 16)
    filtered = sketch.node("Conv", x, sketch.random("filter.w", 4, 2, 5), name="filter", shape=("N", 4, 12))
    power = sketch.node("Mul", filtered, filtered, name="power", shape=("N", 4, 12))
    pooled = sketch.node(
        "AveragePool", power, name="pooled", shape=("N", 4, 4), kernel_shape=(3,), strides=(3,), pads=(0, 0)
    )
    logs = sketch.node("Log", pooled, name="log", shape=("N", 4, 4))
    flat = sketch.node("Reshape", logs, sketch.weight("flat.to", [0, 16], "int64"), name="flat", shape=("N", 16))
    sketch.node("MatMul", flat, sketch.random("last.w", 16, 8), name="last", shape=("N", 8))
    plan = place(canonicalize(sketch.graph("last")), target)
    assert {"filter", "power", "pooled"} <= plan.floats.keys()
    assert plan.placements[Tensor("x")].spec.type_name == "uint16"
    assert plan.placements[Weight("filter.w")].spec.type_name == "int16"
