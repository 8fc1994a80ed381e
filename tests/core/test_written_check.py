"""Figures of a written file against the simulator, and the words for a signal-to-noise ratio."""

from __future__ import annotations

import math

import numpy as np
import pytest

from isobit.backend import WrittenRun
from isobit.encodings import Encoding
from isobit.graph import Graph, Tensor, TensorInfo
from isobit.quantsim.checks.quality import decibels, judged, judgement, sqnr
from isobit.quantsim.checks.written import compare_runs

GRAPH = Graph((), (), {"out": "y"}, {"y": TensorInfo(("N", 4))}, {})
SIMULATED = {"out": np.array([[0.0, 0.1, 0.2, 0.4]], np.float32)}


def check(values: object, scale: float | None = None) -> object:
    encodings = {} if scale is None else {Tensor("y"): Encoding.of("uint8", scale)}
    (result,) = compare_runs(SIMULATED, [WrittenRun("s", {"out": np.array(values, np.float32)})], GRAPH, encodings)
    return result


@pytest.mark.parametrize(
    ("values", "scale", "equal", "steps"),
    [
        ([[0.0, 0.1, 0.2, 0.4]], 0.1, 1.0, 0.0),
        ([[0.0, 0.1, 0.3, 0.4]], 0.1, 0.75, 1.0),
        ([[0.0, 0.1, 0.4, 0.2]], 0.1, 0.5, 2.0),
        ([[0.0, 0.1, 0.2, 0.2]], None, 0.75, 0.2 / (0.4 / 255)),
        ([[0.0, 0.1, math.nan, 0.4]], None, 0.75, math.inf),
    ],
)
def test_share_and_steps(values: object, scale: float | None, equal: float, steps: float) -> None:
    result = check(values, scale)
    assert result.equal == pytest.approx(equal)
    assert result.steps == pytest.approx(steps, rel=1e-5)
    assert ("every value equal" in str(result)) == (equal == 1)


@pytest.mark.parametrize(("scale", "difference", "equal"), [(None, 3e-6, 1.0), (None, 1e-5, 0.75), (0.1, 3e-6, 0.75)])
def test_last_bits_of_floats_are_equal_where_there_is_no_grid(
    scale: float | None, difference: float, equal: float
) -> None:
    """0.4 / 2**16 is 6e-6; values of a grid are equal or they are not."""
    result = check([[0.0, 0.1 + difference, 0.2, 0.4]], scale)
    assert result.equal == equal
    assert ("every value equal but for the last bits of floats, 1" in str(result)) == (equal == 1)


def test_an_output_of_one_value_has_steps_too() -> None:
    simulated, written = ({"out": np.array([[value]], np.float32)} for value in (0.5, 0.5 + 1e-5))
    (result,) = compare_runs(simulated, [WrittenRun("s", written)], GRAPH, {})
    assert result.steps == pytest.approx(1e-5 / (0.5 / 255), rel=1e-2)


def test_an_error_a_missing_output_and_another_shape_are_said() -> None:
    runs = [
        WrittenRun("a", error="it does not run: bad"),
        WrittenRun("b", {}),
        WrittenRun("c", {"out": np.zeros((2, 4), np.float32)}),
    ]
    texts = [str(result) for result in compare_runs(SIMULATED, runs, GRAPH, {})]
    assert texts == [
        "a: it does not run: bad",
        "b: output 'out' is missing",
        "c: output 'out' has shape (2, 4), not (1, 4)",
    ]


@pytest.mark.parametrize(
    ("ratio", "word"), [(math.inf, "equal"), (45, "excellent"), (35, "good"), (25, "fair"), (5, "poor")]
)
def test_words(ratio: float, word: str) -> None:
    assert judgement(ratio) == ("excellent" if ratio == math.inf else word)
    assert judged(ratio).endswith(word)


def test_decibels_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    exact, other = rng.standard_normal((2, 50))
    power = sum(float(v) ** 2 for v in exact)
    noise = sum((float(a) - float(b)) ** 2 for a, b in zip(exact, other, strict=True))
    assert decibels(exact, other) == pytest.approx(10 * math.log10(power / noise))
    assert decibels(np.zeros(3), np.ones(3)) == -math.inf
    assert sqnr({"a": exact, "n": np.arange(3)}, {"a": exact, "n": np.arange(3)}) == {"a": math.inf}
