"""How much of a network is in integers, and the warnings where that is less than a user may think."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy_backend import NumpyBackend, NumpyModel
from registries import own_registry
from sketch import Sketch

from isobit.canonical import canonicalize
from isobit.errors import CoverageWarning, TargetWarning
from isobit.graph.graph import Graph
from isobit.graph.vocabulary import VOCABULARY
from isobit.placement.coverage import Coverage
from isobit.placement.left_weights import by_reason, left_weights
from isobit.placement.place import place
from isobit.placement.quant_config import QuantConfig
from isobit.plugins import hookimpl
from isobit.quantsim import QuantSim
from isobit.targets import parse_target
from isobit.targets.target import Target

TARGETS = Path(__file__).parents[2] / "core" / "isobit" / "targets"


def target(name: str = "default", **replaced: str) -> Target:
    text = (TARGETS / f"{name}.toml").read_text("utf-8")
    for old, new in replaced.items():
        assert f'"{old}"' in text
        text = text.replace(f'"{old}"', f'"{new}"')
    return parse_target(text, "here.toml")


def layers() -> tuple[Graph, dict[str, Any]]:
    """Two convolutions, one grouped, a transposed one, a Linear and a product of two signals."""
    sketch = Sketch(1)
    x = sketch.input("x", "N", 4, 6, 6)
    y = sketch.node("Conv", x, sketch.random("c.w", 8, 4, 3, 3), name="c", shape=("N", 8, 4, 4), group=1)
    y = sketch.node("Conv", y, sketch.random("g.w", 8, 2, 1, 1), name="g", shape=("N", 8, 4, 4), group=4)
    y = sketch.node("ConvTranspose", y, sketch.random("t.w", 3, 8, 2, 2), name="t", shape=("N", 3, 5, 5), group=1)
    y = sketch.node("Reshape", y, name="r", shape=("N", 75))
    y = sketch.node("Linear", y, sketch.random("l.w", 6, 75), sketch.random("l.b", 6), name="l", shape=("N", 6))
    return sketch.graph(y), sketch.values


def counted_by_loop() -> dict[str, int]:
    """Multiply-adds of `layers`, one loop an axis."""
    conv = sum(1 for _ in np.ndindex(8, 4, 4, 4, 3, 3))
    grouped = sum(1 for _ in np.ndindex(8, 4, 4, 2, 1, 1))
    transposed = sum(1 for _ in np.ndindex(8, 4, 4, 3, 2, 2))
    return {"c": conv, "g": grouped, "t": transposed, "l": 6 * 75}


@pytest.mark.parametrize("excluded", ["c", "g", "t", "l"])
def test_multiply_adds_and_bytes_are_those_of_a_loop(excluded: str) -> None:
    graph, values = layers()
    coverage = Coverage.of(graph, place(graph, target(), QuantConfig(exclude=excluded)))
    counts = counted_by_loop()
    sizes = {name: values[name].nbytes for name in values}
    out = sum(size for name, size in sizes.items() if name.startswith(excluded))
    assert coverage.multiply_adds == sum(counts.values())
    assert coverage.integer_multiply_adds == sum(counts.values()) - counts[excluded]
    assert coverage.weight_bytes == sum(sizes.values())
    assert coverage.integer_weight_bytes == sum(sizes.values()) - out
    assert "% of the weight bytes" in str(coverage)


def test_weights_alone_in_integers_compute_in_float() -> None:
    graph, _ = layers()
    coverage = Coverage.of(graph, place(graph, target(), QuantConfig(activations="float16")))
    assert coverage.integer_multiply_adds == 0
    assert coverage.weights is not None
    assert coverage.weights > 0.9


def test_nothing_to_count_is_said() -> None:
    sketch = Sketch()
    graph = sketch.graph(sketch.node("Relu", sketch.input("x", "N", 3), name="r", shape=("N", 3)))
    coverage = Coverage.of(graph, place(graph, target()))
    assert (coverage.weights, coverage.compute) == (None, None)
    assert str(coverage) == "there are no weights and no multiply-adds"


def test_products_of_two_signals_and_recurrent_layers_are_counted() -> None:
    sketch = Sketch()
    x = sketch.input("x", 7, "N", 5)
    sketch.node("LSTM", x, sketch.random("w", 12, 5), sketch.random("r", 12, 3), name="lstm", shape=(7, "N", 3))
    y = sketch.node("Transpose", "lstm", name="turned", shape=("N", 7, 3), perm=(1, 0, 2))
    z = sketch.node("Transpose", y, name="back", shape=("N", 3, 7), perm=(0, 2, 1))
    graph = sketch.graph(sketch.node("MatMul", y, z, name="product", shape=("N", 7, 7)))
    coverage = Coverage.of(graph, place(graph, target()))
    assert coverage.multiply_adds == 7 * (12 * 5 + 12 * 3) + 7 * 7 * 3


def test_a_layer_of_unknown_shape_is_named() -> None:
    sketch = Sketch()
    x = sketch.input("x", "N", 4)
    y = sketch.node("Linear", x, sketch.random("w", 2, 4), name="l", shape=None)
    graph = sketch.graph(y)
    assert Coverage.of(graph, place(graph, target())).uncounted == ("l",)


@pytest.mark.parametrize(
    ("config", "left"),
    [
        (QuantConfig(), {"c.w", "g.w"}),
        (QuantConfig(exclude="g"), {"c.w"}),
        (QuantConfig(overrides={"c.w": None}), {"g.w"}),
        (QuantConfig(exclude="Conv"), set()),
    ],
)
def test_weights_are_left_only_where_nobody_asked_for_it(config: QuantConfig, left: set[str]) -> None:
    graph, _ = layers()
    with pytest.warns(TargetWarning):
        chip = target("onnxruntime-cpu", Conv="Convv")
    weights = left_weights(graph, place(graph, chip, config), chip, config)
    assert {weight.name for weight in weights} == left
    assert list(by_reason(weights)) == (["target 'onnxruntime-cpu' runs Conv in float"] if left else [])


def test_a_layer_that_no_target_quantizes_is_left_and_said() -> None:
    sketch = Sketch()
    image, offsets = sketch.input("image", "N", 4, 6, 6), sketch.input("offsets", "N", 18, 4, 4)
    shape = ("N", 6, 4, 4)
    y = sketch.node("DeformConv", image, sketch.random("d.w", 6, 4, 3, 3), offsets, name="d", shape=shape)
    y = sketch.node("Conv", y, sketch.random("c.w", 3, 6, 1, 1), name="c", shape=("N", 3, 4, 4), group=1)
    graph = canonicalize(sketch.graph(y))
    plan = place(graph, target())
    (left,) = left_weights(graph, plan, target(), QuantConfig())
    assert (left.name, left.op, left.why) == ("d.w", "DeformConv", "no runtime computes DeformConv in integers")
    coverage = Coverage.of(graph, plan)
    assert coverage.weight_bytes == 4 * (6 * 4 * 9 + 3 * 6)
    assert coverage.integer_weight_bytes == 4 * 3 * 6
    assert coverage.uncounted == ("d",)
    assert left_weights(graph, plan, target(), QuantConfig(exclude="d")) == []


def test_what_positions_alone_meet_is_no_weight() -> None:
    """Frequencies of rotary embeddings: a constant times positions, which integers hold, on the way to a cosine."""
    sketch = Sketch()
    positions = sketch.node(
        "Cast", sketch.input("ids", 1, 6, dtype="int64"), name="positions", shape=(1, 6), to="float32"
    )
    table = sketch.node("MatMul", sketch.random("frequencies", 4, 1), positions, name="phases", shape=(4, 6))
    turned = sketch.node("Cos", table, name="cos", shape=(4, 6))
    x = sketch.node("Linear", sketch.input("x", 4, 3), sketch.random("w", 6, 3), name="l", shape=(4, 6))
    graph = sketch.graph(sketch.node("Mul", x, turned, name="m", shape=(4, 6)))
    assert left_weights(graph, place(graph, target()), target(), QuantConfig()) == []


def test_a_weight_that_projects_positions_says_so() -> None:
    """As XLNet's relative positions: computed from the length, and multiplied with a matrix of each layer."""
    sketch = Sketch()
    sizes = sketch.node("Shape", sketch.input("ids", "N", 6, dtype="int64"), name="sizes", shape=(2,), dtype="int64")
    wide = sketch.node("Expand", sketch.random("one", 1, 4), sizes, name="wide", shape=(6, 4))
    positions = sketch.node("Sin", wide, name="sin", shape=(6, 4))
    projected = sketch.node("Linear", positions, sketch.random("p.w", 4, 4), name="p", shape=(6, 4))
    turned = sketch.node("Transpose", projected, name="turned", shape=(4, 6), perm=(1, 0))
    x = sketch.node("Linear", sketch.input("x", "N", 4), sketch.random("w", 4, 4), name="l", shape=("N", 4))
    graph = sketch.graph(sketch.node("MatMul", x, turned, name="m", shape=("N", 6)))
    told = "Linear p reads positions, masks or shapes alone, which stay in float"
    assert place(graph, target()).floats["p.w"] == told
    assert place(graph, target(), QuantConfig(exclude="p")).floats["p.w"] == "Linear p stays in float"


@pytest.mark.parametrize("op", ["Slice", "Neg", "Reshape"])
def test_positions_that_a_layer_projects_are_no_weight_and_its_own_matrix_is(op: str) -> None:
    """Relative positions of speech encoders: made of a table, projected, and multiplied with the queries."""
    sketch = Sketch()
    part = sketch.node(op, sketch.random("table", 6, 4), name="part", shape=(6, 4))
    projected = sketch.node("Linear", part, sketch.random("p.w", 4, 4), name="p", shape=(6, 4))
    turned = sketch.node("Transpose", projected, name="turned", shape=(4, 6), perm=(1, 0))
    x = sketch.node("Linear", sketch.input("x", "N", 4), sketch.random("w", 4, 4), name="l", shape=("N", 4))
    graph = sketch.graph(sketch.node("MatMul", x, turned, name="m", shape=("N", 6)))
    found = Coverage.of(graph, place(graph, target()))
    assert (found.weight_bytes, found.other_bytes) == (2 * 16 * 4, 24 * 4)


def test_double_precision_is_a_reason() -> None:
    graph, _ = layers()
    graph = graph.with_weight("l.w", type(graph.weights["l.w"])((6, 75), "float64"))
    weights = left_weights(graph, place(graph, target()), target(), QuantConfig())
    assert [weight.name for weight in weights] == ["l.w"]
    assert "it is float64" in weights[0].why


@pytest.mark.parametrize(
    ("op", "misspelt"), [("Conv", "Convv"), ("MatMul", "Matmul"), ("Softmax", "SoftMaxx"), ("Concat", "Concatt")]
)
def test_an_op_that_does_not_exist_is_a_warning_with_a_guess(op: str, misspelt: str) -> None:
    with pytest.warns(TargetWarning) as caught:
        target("onnxruntime-cpu", **{op: misspelt})
    assert all(f"there is no operation {misspelt!r} (did you mean {op!r}?)" in str(w.message) for w in caught)


@pytest.mark.parametrize("op", ["com.microsoft::Gelu", "Einsum", "GridSample", "Linear"])
def test_ops_that_exist_and_those_of_other_domains_are_none(op: str) -> None:
    target("onnxruntime-cpu", Gather=op)


def test_the_vocabulary_holds_all_of_onnx() -> None:
    onnx = pytest.importorskip("onnx")
    missing = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""} - VOCABULARY
    assert not missing


@pytest.fixture
def _numpy_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    @hookimpl
    def isobit_backends() -> list[NumpyBackend]:
        return [NumpyBackend()]

    point = SimpleNamespace(name="numpy", value="here", dist=None)
    point.load = lambda: SimpleNamespace(isobit_backends=isobit_backends)
    found = own_registry(point)
    monkeypatch.setattr("isobit.quantsim.quantsim.registry", lambda: found)


def linear() -> NumpyModel:
    sketch = Sketch()
    y = sketch.input("x", "N", 4)
    for name in ("a", "b", "c", "d"):
        y = sketch.node("Linear", y, sketch.random(f"{name}.w", 4, 4), name=name, shape=("N", 4))
    return NumpyModel(canonicalize(sketch.graph(y)), sketch.values)


@pytest.mark.usefixtures("_numpy_is_installed")
def test_calibration_warns_once_with_count_and_reasons() -> None:
    with pytest.warns(TargetWarning):
        chip = target("onnxruntime-cpu", Linear="Liner")
    sim = QuantSim(linear(), target=chip)
    data = np.ones((3, 4), np.float32)
    with pytest.warns(CoverageWarning) as caught:
        sim.calibrate(data)
    text = str(caught[0].message)
    assert "nothing was quantized" in text
    assert "4 because target 'onnxruntime-cpu' runs Linear in float: a.w, b.w, c.w and 1 more" in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sim.calibrate(data)
        sim.recalibrate("mse")


@pytest.mark.usefixtures("_numpy_is_installed")
@pytest.mark.parametrize("settings", [{"exclude": "a"}, {"overrides": {"b.w": None}}, {"exclude": ("c", "d")}])
def test_what_was_asked_for_is_no_warning(settings: Any) -> None:
    sim = QuantSim(linear(), **settings)
    sim.calibrate(np.ones((3, 4), np.float32))
    coverage = sim.report.coverage
    assert coverage.weights is not None
    assert 0 < coverage.weights < 1
    assert f"coverage      {coverage}" in str(sim.report)


@pytest.mark.usefixtures("_numpy_is_installed")
def test_layers_whose_signals_vanish_are_said() -> None:
    """Their weights are integers, and they compute in float: without trained weights a deep network ends in zeros."""
    sim = QuantSim(linear(), target=target("onnxruntime-cpu"))
    with pytest.warns(
        CoverageWarning, match=r"4 layers compute in float \(100.0 % .*, 0.0 % .*never trained"
    ) as caught:
        sim.calibrate(np.full((3, 4), 1e-9, np.float32))
    assert len(caught) == 1
    coverage = sim.report.coverage
    assert (coverage.weights, coverage.compute) == (1.0, 0.0)
    sim.calibrate(np.ones((3, 4), np.float32))
    assert sim.report.coverage.compute == 1.0


@pytest.mark.parametrize("op", ["Conv", "Linear"])
def test_a_convolution_without_a_grid_for_its_result_counts_as_float(op: str) -> None:
    """Runtimes have integer kernels of matrix products that hand on floats, and none of convolutions."""
    sketch = Sketch()
    kernel, shape = ((1, 1), ("N", 4, 6, 6)) if op == "Conv" else ((), ("N", 6, 4))
    phases = sketch.input("x", *shape)
    layer = sketch.node(op, phases, sketch.random("w", 4, 4, *kernel), name="l", shape=shape)
    behind = sketch.node(op, sketch.node("Sin", layer, name="s", shape=shape), sketch.random("v", 4, 4, *kernel),
                         name="m", shape=shape)  # fmt: skip
    graph = sketch.graph(sketch.node("Relu", behind, name="r", shape=shape))  # one chain with the layer before it
    coverage = Coverage.of(graph, place(graph, target()))
    counted = 4 * 4 * (36 if op == "Conv" else 6)
    assert coverage.multiply_adds == 2 * counted
    assert coverage.integer_multiply_adds == (counted if op == "Conv" else 2 * counted)
    assert coverage.weights == 1


@pytest.mark.parametrize("op", ["If", "Loop", "Scan"])
def test_matrices_that_a_body_reads_are_left_in_float(op: str) -> None:
    sketch = Sketch()
    x = sketch.node("Linear", sketch.input("x", "N", 4), sketch.random("w", 4, 4), name="l", shape=("N", 4))
    y = sketch.node(op, x, sketch.random("inner", 4, 4), sketch.random("offset", 4), name="body", shape=("N", 4))
    graph = sketch.graph(y)
    plan = place(graph, target())
    left = left_weights(graph, plan, target(), QuantConfig())
    assert [weight.name for weight in left] == ["inner"]
    assert "body" in left[0].why
    assert not left_weights(graph, plan, target(), QuantConfig(exclude=op))
    coverage = Coverage.of(graph, plan)
    assert coverage.uncounted == ("body",)
    assert coverage.weight_bytes == coverage.integer_weight_bytes + 4 * 16
    assert coverage.other_bytes == 4 * 4


def test_masks_and_norms_are_counted_apart() -> None:
    """Masks, norms and offsets are no weights; a computed weight, a bias and a table of embeddings are."""
    sketch = Sketch(3)
    rows = sketch.node("Gather", sketch.random("table", 9, 4), sketch.input("ids", "N", dtype="int64"),
                       name="rows", shape=("N", 4), axis=0)  # fmt: skip
    y = sketch.node("LayerNormalization", rows, sketch.random("scale", 4), sketch.random("shift", 4), name="norm",
                    shape=("N", 4), axis=-1, epsilon=1e-5)  # fmt: skip
    made = sketch.node("Mul", sketch.random("raw", 4, 4), sketch.random("gain", 4, 1), name="made", shape=(4, 4))
    y = sketch.node("Linear", y, made, sketch.random("bias", 4), name="first", shape=("N", 4))
    y = sketch.node("Add", y, sketch.random("mask", 1, 4), name="masked", shape=("N", 4))
    y = sketch.node("Linear", y, sketch.random("w", 2, 4), name="last", shape=("N", 2))
    graph = sketch.graph(y)
    coverage = Coverage.of(graph, place(graph, target()))
    assert coverage.weight_bytes == 4 * (36 + 16 + 4 + 4 + 8)
    assert coverage.other_bytes == 4 * (4 + 4 + 4)
    assert "% of 48 bytes of constants that are no weights" in str(coverage)
