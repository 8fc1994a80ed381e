"""The ratio of each part of an output that is put together, against slices cut by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sketch import Sketch

from isobit.graph.graph import Graph
from isobit.quantsim.checks.parts import part_sqnr, parts_of
from isobit.quantsim.checks.quality import decibels

RNG = np.random.default_rng(2)


def detector(turned: bool, sizes: tuple[int | str | None, ...] = (4, 80)) -> Graph:
    """Boxes and scores side by side along axis 1, and turned where it is asked for."""
    sketch = Sketch()
    parts = [
        sketch.node("Relu", sketch.input(f"x{index}", "N", size, 10), name=name, shape=("N", size, 10))
        for index, (name, size) in enumerate(zip(("boxes", "scores"), sizes, strict=True))
    ]
    joined = sketch.node("Concat", *parts, name="joined", shape=("N", None, 10), axis=1)
    if turned:
        joined = sketch.node("Transpose", joined, name="turned", shape=("N", 10, None), perm=(0, 2, 1))
    return sketch.graph(joined)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("sizes", [(4, 80), (None, 80), (4, "classes")])
def test_each_part_is_judged_alone(turned: bool, sizes: tuple[int | str | None, ...]) -> None:
    graph = detector(turned, sizes)
    exact = np.concatenate([500 * RNG.random((2, 4, 10)), RNG.random((2, 80, 10))], axis=1).astype(np.float32)
    other = exact + 0.01 * RNG.standard_normal(exact.shape).astype(np.float32)
    other[:, 4:] = 0  # the scores are lost, which the whole output hides
    (name,) = graph.outputs
    expected = [decibels(exact[:, :4], other[:, :4]), decibels(exact[:, 4:], other[:, 4:])]
    if turned:
        exact, other = exact.transpose(0, 2, 1), other.transpose(0, 2, 1)
    found = part_sqnr(graph, {name: exact}, {name: other})
    assert decibels(exact, other) > 30
    assert list(found) == [f"{name}[scores]", f"{name}[boxes]"]  # the worst comes first
    assert found[f"{name}[boxes]"] == pytest.approx(expected[0])
    assert found[f"{name}[scores]"] == pytest.approx(expected[1]) == pytest.approx(0)


def test_what_is_not_put_together_or_of_unknown_sizes_has_no_parts() -> None:
    sketch = Sketch()
    graph = sketch.graph(sketch.node("Relu", sketch.input("x", "N", 3), name="r", shape=("N", 3)))
    assert parts_of(graph, "r", (2, 3)) == []
    assert parts_of(detector(False, (None, None)), "joined", (2, 84, 10)) == []
    (name,) = detector(False).outputs
    whole = np.ones((2, 84, 10), np.int64)
    assert part_sqnr(detector(False), {name: whole}, {name: whole}) == {}
