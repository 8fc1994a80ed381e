"""Ranges by the error behind the function that reads a tensor, against brute force over all grids."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from sketch import Sketch

from isobit.calibration import MeanSquareError, ReaderError
from isobit.calibration.error import Bins
from isobit.calibration.range_memo import RangeMemo
from isobit.calibration.reader_functions import reader_functions
from isobit.calibration.resolve import resolve_activations
from isobit.calibration.schemes.reader_error import _Behind
from isobit.encodings import QuantSpec
from isobit.encodings.ranges import candidate_grids, encode_range
from isobit.graph import Tensor
from isobit.placement.plan import Placement, Plan
from isobit.statistics import Histogram, Statistics

UINT8 = QuantSpec.parse("uint8 per-tensor")
VALUES = (np.random.default_rng(0).standard_normal((8, 512)) * 3 - 1).astype(np.float32)

#: Written from the ONNX specification, not from the code.
FUNCTIONS: dict[str, tuple[dict[str, Any], Callable[[np.ndarray], np.ndarray]]] = {
    "Relu": ({}, lambda x: np.where(x > 0, x, 0)),
    "Clip": ({"min": 0.0, "max": 6.0}, lambda x: np.minimum(np.maximum(x, 0), 6)),
    "LeakyRelu": ({"alpha": 0.1}, lambda x: np.where(x >= 0, x, 0.1 * x)),
    "HardSigmoid": ({"alpha": 0.2, "beta": 0.5}, lambda x: np.maximum(0, np.minimum(1, 0.2 * x + 0.5))),
    "HardSwish": ({}, lambda x: x * np.maximum(0, np.minimum(1, x / 6 + 0.5))),
    "Swish": ({}, lambda x: x / (1 + np.exp(-x))),
    "Sigmoid": ({}, lambda x: 1 / (1 + np.exp(-x))),
    "Tanh": ({}, lambda x: (np.exp(2 * x) - 1) / (np.exp(2 * x) + 1)),
    "Gelu": ({"approximate": "none"}, lambda x: x * np.vectorize(math.erfc)(-x / 2**0.5) / 2),
    "Mish": ({}, lambda x: x * np.tanh(np.log1p(np.exp(x)))),
}


PLACED = Placement(Tensor("x"), UINT8, "activation", "x", "x")


def histogram_of(values: np.ndarray) -> Histogram:
    histogram = Histogram(limit=None)
    histogram.update(values)
    return histogram


def error_behind(function: Callable[[np.ndarray], np.ndarray], low: float, high: float) -> float:
    """On the very values, not on a histogram."""
    values = VALUES.astype(np.float64)
    rounded = encode_range(low, high, UINT8).fake_quantize(VALUES).astype(np.float64)
    return float(np.mean((function(values) - function(rounded)) ** 2))


@pytest.mark.parametrize("op", FUNCTIONS)
def test_no_grid_of_a_brute_force_search_is_much_better(op: str) -> None:
    attributes, function = FUNCTIONS[op]
    sketch = Sketch()
    graph = sketch.graph(sketch.node(op, sketch.input("x", "N", 512), name="y", shape=("N", 512), **attributes))
    plan = Plan({Tensor("x"): PLACED})
    (known,) = reader_functions(graph, plan).values()
    found = error_behind(function, *ReaderError().range_behind(histogram_of(VALUES), UINT8, known))
    lowest, highest = float(VALUES.min()), float(VALUES.max())
    brute = min(
        error_behind(function, low, high)
        for low in np.linspace(lowest, 0, 24)
        for high in np.linspace(highest / 24, highest, 24)
    )
    assert found <= 1.1 * brute + 1e-12
    assert found <= error_behind(function, *MeanSquareError().range(histogram_of(VALUES), UINT8)) * (1 + 1e-2)


def test_what_lies_where_a_function_is_flat_gets_no_levels() -> None:
    """Below -3 HardSwish is 0."""
    _, function = FUNCTIONS["HardSwish"]
    low, high = ReaderError().range_behind(histogram_of(VALUES), UINT8, function)
    assert VALUES.min() < -8
    assert -3.5 < low < -2
    assert high > 6


def _graph(*readers: tuple[str, dict[str, Any]], moved: bool = False, returned: bool = False) -> Any:
    sketch = Sketch()
    x = sketch.input("x", "N", 64)
    outputs = [x] if returned else []
    source = sketch.node("Reshape", x, name="m", shape=("N", 8, 8)) if moved else x
    outputs += [sketch.node(op, source, name=f"y{i}", **attributes) for i, (op, attributes) in enumerate(readers)]
    return sketch.graph(*outputs)


SWISH, RELU = ("HardSwish", {}), ("Relu", {})


@pytest.mark.parametrize(
    ("graph", "tied", "is_known"),
    [
        (_graph(SWISH), False, True),
        (_graph(SWISH, SWISH), False, True),
        (_graph(SWISH, moved=True), True, True),
        (_graph(SWISH, RELU), False, False),
        (_graph(SWISH, returned=True), False, False),
        (_graph(SWISH, ("Softmax", {"axis": -1})), False, False),
        (_graph(("LeakyRelu", {"alpha": 0.1}), ("LeakyRelu", {"alpha": 0.2})), False, False),
        (_graph(SWISH, moved=True), False, False),
    ],
)
def test_one_function_alone_reads(graph: Any, tied: bool, is_known: bool) -> None:
    placements = {Tensor("x"): PLACED}
    if tied:
        placements[Tensor("m")] = Placement(Tensor("m"), UINT8, "activation", "m", "x")
    assert bool(reader_functions(graph, Plan(placements))) == is_known


@pytest.mark.parametrize("spec", ["int16", "float16", "float8e4m3", "int8 symmetric", "uint4"])
def test_other_formats_and_few_values(spec: str) -> None:
    """Grids without a table of levels are judged as without a reader; a constant tensor has its range."""
    parsed, (_, function) = QuantSpec.parse(f"{spec} per-tensor"), FUNCTIONS["HardSwish"]
    low, high = ReaderError().range_behind(histogram_of(VALUES), parsed, function)
    assert low <= 0 < high
    constant = histogram_of(np.full((2, 8), 1.5, np.float32))
    assert encode_range(*ReaderError().range_behind(constant, parsed, function), parsed).scale > 0


def test_the_plan_gets_the_range_behind_its_reader() -> None:
    statistics = Statistics({Tensor("x"): histogram_of(VALUES)})
    _, function = FUNCTIONS["HardSwish"]
    plan = Plan({Tensor("x"): PLACED})
    (encoding,) = resolve_activations(plan, statistics, ReaderError(), functions={"x": function}).values()
    expected = encode_range(*ReaderError().range_behind(histogram_of(VALUES), UINT8, function), UINT8)
    assert encoding == expected


@pytest.mark.parametrize("spec", ["uint8 per-tensor", "int4 symmetric per-tensor"])
def test_the_kernel_and_numpy_sum_what_a_loop_sums(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    histogram = Histogram()
    histogram.update(VALUES)
    bins = Bins.of(histogram).thinned()

    def function(x: np.ndarray) -> np.ndarray:
        return np.tanh(x)

    costs = _Behind(bins, function)
    grids = candidate_grids(np.array([-4.0, -1.5, 0.0]), np.array([5.0, 0.5, 2.0]), QuantSpec.parse(spec))
    expected = []
    for scale, zero in zip(grids.scale.tolist(), grids.zero_point.tolist(), strict=True):
        total = 0.0
        for low, high, count in zip(*bins, strict=True):
            for share in (0.125, 0.375, 0.625, 0.875):
                x = low + (high - low) * share
                level = min(max(round(x / scale) + zero, grids.spec.q_min), grids.spec.q_max)
                total += count / 4 * (math.tanh((level - zero) * scale) - math.tanh(x)) ** 2
        expected.append(total / bins.counts.sum())
    np.testing.assert_allclose(costs(grids), expected, rtol=1e-9)
    monkeypatch.setenv("ISOBIT_KERNELS", "numpy")
    np.testing.assert_allclose(costs(grids), expected, rtol=1e-9)


@pytest.mark.parametrize(("spec", "is_shared"), [("uint8 per-tensor", True), ("int16 per-tensor", False)])
def test_schemes_that_differ_elsewhere_share_the_search_behind_a_function(
    spec: str, is_shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`gamma` weighs clipping where the readers are not known; errors behind a function have none, but in 16 bits."""
    asked: list[float] = []
    search = ReaderError.range_behind

    def noting(scheme: ReaderError, *arguments: Any) -> tuple[float, float]:
        asked.append(scheme.gamma)
        return search(scheme, *arguments)

    monkeypatch.setattr(ReaderError, "range_behind", noting)
    plan = Plan({Tensor("x"): Placement(Tensor("x"), QuantSpec.parse(spec), "activation", "x", "x")})
    statistics, memo = Statistics({Tensor("x"): histogram_of(VALUES)}), RangeMemo()
    functions = {"x": np.tanh}
    resolve = partial(resolve_activations, plan, statistics, functions=functions)
    for scheme in (ReaderError(), ReaderError(gamma=3.0)):
        assert resolve(scheme, memo=memo) == resolve(scheme)
    assert len(asked) == (3 if is_shared else 4)
