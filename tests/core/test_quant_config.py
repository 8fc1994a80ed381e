"""What a user asks of placement: formats, overrides, nodes left out."""

from __future__ import annotations

import re

import pytest
from drawn_graphs import ACTIVATION, DEFAULT, ORT, formats, small
from registries import own_registry
from sketch import Sketch

from isobit.canonical import canonicalize
from isobit.errors import FormatError
from isobit.graph import Input, Tensor, Weight
from isobit.placement import QuantConfig, place


def test_formats_for_all() -> None:
    plan = place(small(), DEFAULT, QuantConfig(weights="int4 per-tensor", activations="int16"))
    assert formats(plan)["w:head.w"] == "int4 symmetric per-tensor"
    assert formats(plan)["head"] == "int16 symmetric per-tensor"


def test_overrides_by_pattern_the_last_wins() -> None:
    overrides = {"*.w": "int4", "head.*": "int6", "block.relu": "uint4", "x": None}
    placed = formats(place(small(), DEFAULT, QuantConfig(overrides=overrides)))
    assert placed["w:block.conv.w"] == "int4 symmetric per-channel"
    assert placed["w:head.w"] == "int6 symmetric per-channel"
    assert placed["block.relu"] == "uint4 asymmetric per-tensor"
    assert placed["pool"] == "uint4 asymmetric per-tensor (copy)", "what it is tied to goes along"
    plan = place(small(), DEFAULT, QuantConfig(overrides=overrides))
    assert plan.floats["x"] == "float by your override"


def test_weights_kept_in_float() -> None:
    plan = place(small(), DEFAULT, QuantConfig(overrides={"head.w": None}))
    assert plan.floats["head.w"] == "float by your override"
    assert Tensor("head") in plan.placements


def test_one_reader_may_have_its_own_format() -> None:
    plan = place(small(), DEFAULT, QuantConfig(overrides={"head[0]": "uint4"}))
    assert str(plan.placements[Input("head", 0)].spec) == "uint4 asymmetric per-tensor"
    assert formats(plan)["pool"] == ACTIVATION + " (copy)"


@pytest.mark.parametrize("pattern", ["block.conv", "Conv", "block.*"])
def test_excluded_nodes_stay_in_float(pattern: str) -> None:
    plan = place(small(), DEFAULT, QuantConfig(exclude=[pattern]))
    assert Weight("block.conv.w") not in plan.placements
    assert plan.floats["block.conv.w"] == "Conv block.conv stays in float"
    assert Tensor("x") not in plan.placements
    assert (Weight("head.w") in plan.placements) == (pattern != "Conv")


def test_an_excluded_node_is_fused_into_nothing() -> None:
    plan = place(small(), ORT, QuantConfig(exclude=["Relu"]))
    assert Tensor("block.conv") in plan.placements
    assert plan.placements[Tensor("block.relu")].group == "block.relu", "the next layer reads it through the pooling"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            QuantConfig(overrides={"haed.w": "int4"}),
            "override 'haed.w' matches no tensor or weight (did you mean 'head.w'?)",
        ),
        (QuantConfig(overrides={"head[3]": "int4"}), "override 'head[3]' matches no tensor or weight"),
        (QuantConfig(exclude=["Covn"]), "exclude 'Covn' matches no node name or op type (did you mean 'Conv'?)"),
        (QuantConfig(overrides={"head[1]": "int4"}), "override 'head[1]': input 1 of 'head' is no float tensor"),
        (QuantConfig(overrides={"head[0]": None}), "one reader cannot take the float tensor back; override 'pool'"),
        (QuantConfig(overrides={"head.w": "in4"}), "unknown number type 'in4'"),
        (QuantConfig(overrides={"x": "uint8 per-channel"}), "quantizes activations per-tensor, not per-channel"),
        (
            QuantConfig(activations="uint4"),
            "target 'onnxruntime-cpu' cannot run activations of type uint4; it runs: uint8, int8",
        ),
        (QuantConfig(weights="int2"), "target 'onnxruntime-cpu' cannot run weights of type int2; it runs: int8, uint8"),
        (QuantConfig(weights="int4 lpbq=2"), "cannot run weights lpbq=2; it runs: per-channel, per-tensor, block"),
    ],
)
def test_configs_that_cannot_be_met(config: QuantConfig, message: str) -> None:
    with pytest.raises(FormatError, match=re.escape(message)):
        place(small(), ORT, config)


def test_an_override_inside_a_chain_says_what_the_chain_is() -> None:
    sketch = Sketch()
    x = sketch.input("x", "N", 3, 8, 8)
    weight = sketch.random("w", 4, 3, 1, 1)
    y = sketch.node("Conv", x, weight, name="conv", shape=("N", 4, 8, 8))
    y = sketch.node("Relu", y, name="relu", shape=("N", 4, 8, 8))
    graph = canonicalize(sketch.graph(y))
    with pytest.raises(FormatError, match="'conv'.*inside the chain that ends in 'relu'"):
        place(graph, own_registry().target("default"), QuantConfig(overrides={"conv": "int16"}))
