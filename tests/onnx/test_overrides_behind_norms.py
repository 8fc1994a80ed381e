"""Names as a model was opened, and those that messages use afterwards, reach what is behind a folded batch norm."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
import pytest
from small_models import model, node, value

import isobit
from isobit.errors import FormatError

RNG = np.random.default_rng(8)
DATA = RNG.standard_normal((4, 3, 6, 6)).astype(np.float32)


def network():
    """Two convolutions with a norm each, a sigmoid behind the second, and a scale that folding takes in too."""
    norms = {f"{norm}.{part}": 0.5 + RNG.random(4) for norm in ("n1", "n2") for part in ("g", "b", "m", "v")}
    nodes = [
        node("Conv", "x w1", "c1"),
        node("BatchNormalization", "c1 n1.g n1.b n1.m n1.v", "bn1"),
        node("Relu", "bn1", "r"),
        node("Conv", "r w2", "c2"),
        node("BatchNormalization", "c2 n2.g n2.b n2.m n2.v", "bn2"),
        node("Mul", "bn2 k", "m"),
        node("Sigmoid", "m", "s"),
        node("ReduceMean", "s", "y", axes=[2, 3], keepdims=0),
    ]
    constants = {"w1": RNG.standard_normal((4, 3, 3, 3)), "w2": RNG.standard_normal((4, 4, 3, 3)), "k": np.float32(0.5)}
    return model(nodes, [value("x", ["n", 3, 6, 6])], [value("y", None)], {**constants, **norms})


def quantized(**settings):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return isobit.quantize(network(), DATA, target="default", method="minmax", progress=False, **settings)


def types(sim) -> Mapping[str, str]:
    return {str(site): encoding.spec.type_name for site, encoding in sim.encodings.items()}


PLAIN = {"x": "uint8", "n_r": "uint8", "n_c2": "uint8", "n_s": "uint8", "n_y": "uint8"}


@pytest.mark.parametrize("name", ["n_c2", "n_bn2", "n_m", "n_bn2*", "n_[m]"])
def test_a_format_reaches_the_layer_that_took_the_norm(name: str) -> None:
    found = types(quantized(overrides={name: "int16"}))
    assert {key: found[key] for key in PLAIN} == {**PLAIN, "n_c2": "int16"}


def test_float_does_too() -> None:
    for name in ("n_c2", "n_bn2"):
        assert set(PLAIN) - set(types(quantized(overrides={name: None}))) == {"n_c2"}


def test_the_last_pattern_wins_behind_a_norm_too() -> None:
    assert types(quantized(overrides={"n_bn2": "int16", "n_c2": "uint8"}))["n_c2"] == "uint8"


def test_the_bias_that_folding_makes_can_be_named() -> None:
    assert "n_c2.bias" in types(quantized())
    assert "n_c2.bias" not in types(quantized(overrides={"n_c2.bias": None}))


def test_an_excluded_norm_is_excluded_with_its_layer() -> None:
    found = types(quantized(exclude="n_bn1"))
    assert "w1" not in found
    assert found["w2"] == "int8"
    assert types(quantized(exclude="BatchNormalization")) == types(quantized())


def test_what_the_target_runs_as_one_says_the_name_to_use() -> None:
    with pytest.raises(FormatError, match=r"runs as one: name 'n_r'"):
        quantized(overrides={"n_bn1": "int16"})
    with pytest.raises(FormatError, match="matches no tensor"):
        quantized(overrides={"n_bn3": "int16"})


def test_a_saved_simulator_has_them_still(tmp_path) -> None:
    sim = quantized(overrides={"n_bn2": "int16"}, exclude="n_bn1")
    sim.save(tmp_path / "sim.isobit")
    proto = network()
    for old, new in zip(proto.graph.initializer, sim_constants(sim), strict=True):
        old.CopyFrom(new)
    loaded = isobit.load(tmp_path / "sim.isobit", proto)
    assert types(loaded) == types(sim)
    loaded.calibrate(DATA, progress=False)
    assert types(loaded) == types(sim)


def sim_constants(sim):
    """The constants of the model as it was given."""
    return list(sim.simulation.model.inner.given.graph.initializer)
