"""Filters between the input and a spectrum whose root or logarithm is taken have 16 bits; layers deeper in do not."""

from __future__ import annotations

import pytest
from registries import own_registry
from sketch import Sketch

from isobit.canonical import canonicalize
from isobit.graph import Graph, Tensor, Weight
from isobit.placement import QuantConfig, place
from isobit.targets import Target

TARGETS = [own_registry().target(name) for name in ("default", "onnxruntime-cpu")]
SOUND, BANDS = ("N", 1, 64), ("N", 8, 15)


def filters(sketch: Sketch, x: str, name: str) -> str:
    return sketch.node("Conv", x, sketch.random(f"{name}.w", 8, 1, 8), name=name, shape=BANDS, strides=(4,))


def power(sketch: Sketch, *parts: str) -> str:
    squares = [sketch.node("Mul", part, part, name=f"{part}2", shape=BANDS) for part in parts]
    return sketch.node("Add", *squares, name="power", shape=BANDS)


def network(sketch: Sketch, result: str) -> Graph:
    """A convolution behind it, so that there is something else to quantize."""
    sketch.node("Conv", result, sketch.random("last.w", 8, 8, 1), name="last", shape=BANDS)
    return canonicalize(sketch.graph("last"))


def magnitudes() -> Graph:
    """Real and imaginary parts as two convolutions of the padded sound."""
    sketch = Sketch()
    padded = sketch.node("Pad", sketch.input("x", "N", 1, 60), name="padded", shape=SOUND, pads=(0, 0, 2, 0, 0, 2))
    parts = filters(sketch, padded, "real"), filters(sketch, padded, "imaginary")
    return network(sketch, sketch.node("Sqrt", power(sketch, *parts), name="root", shape=BANDS))


def octaves() -> Graph:
    """A constant-Q transform: the sound is halved by a filter first, and scaled by a constant."""
    sketch = Sketch()
    half = sketch.node(
        "Conv", sketch.input("x", "N", 1, 128), sketch.random("low.w", 1, 1, 2), name="low", shape=SOUND, strides=(2,)
    )
    scaled = sketch.node("Mul", half, sketch.weight("gain", 1.5), name="scaled", shape=SOUND)
    parts = filters(sketch, scaled, "real"), filters(sketch, scaled, "imaginary")
    loud = sketch.node("Add", power(sketch, *parts), sketch.weight("floor", 1e-9), name="loud", shape=BANDS)
    return network(sketch, sketch.node("Log", loud, name="decibels", shape=BANDS))


def one_filter_bank() -> Graph:
    """Both parts of one convolution, cut apart, squared by Pow."""
    sketch = Sketch()
    both = sketch.node(
        "Conv", sketch.input("x", *SOUND), sketch.random("both.w", 16, 1, 8), name="both", shape=("N", 16, 15),
        strides=(4,),
    )  # fmt: skip
    two = sketch.weight("two", 2.0)
    squares = []
    for name, first in (("real", 0), ("imaginary", 8)):
        part = sketch.node("Slice", both, name=name, shape=BANDS, starts=(first,), ends=(first + 8,), axes=(1,))
        squares.append(sketch.node("Pow", part, two, name=f"{name}2", shape=BANDS))
    total = sketch.node("Add", *squares, name="power", shape=BANDS)
    return network(sketch, sketch.node("Sqrt", total, name="root", shape=BANDS))


NETWORKS = {
    "magnitudes": (magnitudes(), ["x", "padded"], ["real", "imaginary"]),
    "octaves": (octaves(), ["x", "low", "scaled"], ["low", "real", "imaginary"]),
    "one filter bank": (one_filter_bank(), ["x"], ["both"]),
}


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize("name", NETWORKS)
def test_filters_of_a_spectrum_have_16_bits(name: str, target: Target) -> None:
    graph, sounds, layers = NETWORKS[name]
    plan = place(graph, target)
    read = [p for p in plan.placements.values() if p.tensor in sounds and p.kind == "activation"]
    assert {p.spec.type_name for p in read} == {"uint16"}
    for layer in layers:
        assert plan.placements[Weight(f"{layer}.w")].spec.type_name == "int16"
    for exact in {"real", "imaginary", "both", "power"} & graph.tensors.keys():
        assert "small values count" in plan.floats[exact], exact
        assert Tensor(exact) not in plan.placements
    assert plan.placements[Weight("last.w")].spec.type_name == "int8"
    assert any("16 bits" in note for note in plan.notes)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_lengths_of_features_deeper_in_cost_nothing(target: Target) -> None:
    sketch = Sketch()
    hidden = sketch.node("Relu", filters(sketch, sketch.input("x", *SOUND), "first"), name="bent", shape=BANDS)
    parts = [
        sketch.node("Conv", hidden, sketch.random(f"{n}.w", 8, 8, 1), name=n, shape=BANDS) for n in ("second", "third")
    ]
    graph = network(sketch, sketch.node("Sqrt", power(sketch, *parts), name="root", shape=BANDS))
    plan = place(graph, target)
    weights = [plan.placements[Weight(f"{layer}.w")].spec for layer in ("first", "second", "third", "last")]
    assert {spec.type_name for spec in weights} == {"int8"}
    assert all(p.spec.bits == 8 for p in plan.placements.values() if p.kind == "activation")


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_an_override_of_the_sound_wins(target: Target) -> None:
    graph, _, _ = NETWORKS["octaves"]
    plan = place(graph, target, QuantConfig(overrides={"scaled": "uint8"}))
    assert all(p.spec.bits == 8 for p in plan.placements.values() if p.tensor in ("x", "low", "scaled"))
