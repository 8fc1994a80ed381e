"""What encodings of a plan owe each other."""

from __future__ import annotations

import json

import numpy as np

from isobit.encodings import Encoding, QuantSpec, Relations
from isobit.graph import Input, Tensor, Weight
from isobit.placement import Placement, Plan

UINT8, INT32 = QuantSpec.parse("uint8"), QuantSpec.parse("int32 per-tensor")
X, Y, Z, W, B, READER = Tensor("x"), Tensor("y"), Tensor("z"), Weight("w"), Weight("b"), Input("fc", 0)


def plan() -> Plan:
    """y and z are tied, z's reshape z' is no quantizer of its own and the input of a layer; x has a known range."""
    placements = [
        Placement(X, UINT8, "activation", "x", "x", fixed_range=(0.0, 1.0)),
        Placement(Y, UINT8, "activation", "y", "yz"),
        Placement(Z, UINT8, "activation", "z", "yz"),
        Placement(READER, UINT8, "activation", "z'", "yz", simulated=False),
        Placement(W, QuantSpec.parse("int8 per-tensor"), "weight"),
        Placement(B, INT32, "bias", scale_of=(READER, W)),
    ]
    return Plan({placement.site: placement for placement in placements})


def test_relations_of_a_plan() -> None:
    relations = plan().relations()
    assert relations.products == {B: (Y, W)}
    assert relations.ties == {Z: Y}
    assert relations.fixed == {X}
    assert relations.touch([W])
    assert relations.touch([Z])
    assert not relations.touch([X])
    assert Relations.from_record(json.loads(json.dumps(relations.to_record()))) == relations


def test_formats_that_no_data_decides_are_fixed() -> None:
    for text in ("float16", "bfloat16", "int4 lpbq=64"):
        placement = Placement(W, QuantSpec.parse(text), "weight")
        assert Plan({W: placement}).relations().fixed == {W}


def test_relations_that_hold() -> None:
    scale = np.float32(0.1) * np.float32(0.3)
    encodings = {
        **{site: Encoding.of("uint8", 0.1, 3) for site in (X, Y, Z)},
        W: Encoding.of("int8 per-tensor", 0.3),
        B: Encoding(INT32, scale, np.int32(0)),
    }
    relations = plan().relations()
    assert relations.that_hold(encodings) == relations
    assert relations.that_hold({**encodings, W: Encoding.of("int8 per-tensor", 0.2)}).products == {}
    of_channels = Encoding.of("uint8 per-channel", [0.5, 0.25], [0, 0], axis=1)
    assert relations.that_hold({**encodings, Y: of_channels}).products == {}
    assert relations.that_hold({**encodings, Z: Encoding.of("uint8", 0.1, 4)}).ties == {}
    del encodings[Y]
    assert relations.that_hold(encodings) == Relations(fixed=frozenset([X]))
