"""The integer program against every assignment there is, and what formats cost by hand."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from technique_networks import simulator

from isobit.errors import FormatError, ModelError
from isobit.graph.multiply_adds import multiply_adds
from isobit.search.choose import Search
from isobit.search.cost_tables import CONVERSION, cost_table
from isobit.search.formats import parse_candidates
from isobit.search.groups import Groups
from isobit.search.integer_program import Program
from isobit.search.operations import Costs, costs_of
from isobit.testing.networks import NETWORKS, NetworkBuilder


def _program(seed: int, groups: int = 5, formats: int = 3, *, is_crossed: bool = False) -> Program:
    """Random costs that grow with the format and noise that falls, some formats not allowed, and random neighbours.

    Where `is_crossed` errors of groups in the first format are random vectors: some add up, some cancel.
    """
    rng = np.random.default_rng(seed)
    single = np.cumsum(rng.uniform(0, 10, (groups, formats)), axis=1)
    noise = np.sort(rng.uniform(0, 1, (groups, formats)), axis=1)[:, ::-1] * 10.0 ** rng.integers(-6, 1, (groups, 1))
    noise[rng.integers(groups), 1] = np.inf
    noise[rng.integers(groups), formats - 1] = 0.0
    edges = {(int(a), int(b)) for a, b in rng.integers(0, groups, (6, 2)) if a != b}
    pairs = {edge: rng.uniform(0, 20, (formats, formats)) * (1 - np.eye(formats)) for edge in sorted(edges)}
    crossed = {}
    if is_crossed:
        errors = rng.standard_normal((groups, 3)) + 1  # few dimensions: far from square to one another
        errors *= np.sqrt(noise[:, :1]) / np.linalg.norm(errors, axis=1, keepdims=True)
        for a, b in combinations(range(groups), 2):
            crossed[a, b] = np.zeros((formats, formats))
            crossed[a, b][0, 0] = 1.8 * float(errors[a] @ errors[b])
    return Program(Costs(single, pairs, "of the test"), noise, crossed)


@pytest.mark.parametrize("is_crossed", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_it_finds_what_brute_force_finds(seed: int, *, is_crossed: bool) -> None:
    program = _program(seed, is_crossed=is_crossed)
    groups, formats = program.noise.shape
    every = [c for c in product(range(formats), repeat=groups) if np.isfinite(program.noise_of(c))]
    costs = {choice: program.costs.of(choice) for choice in every}
    noise = {choice: program.noise_of(choice) for choice in every}
    assert costs[program.cheapest()] == pytest.approx(min(costs.values()))
    assert noise[program.quietest()] == pytest.approx(min(noise.values()))
    for quantile in (0.1, 0.4, 0.8):
        bound = float(np.quantile(list(noise.values()), quantile))
        found = program.within(bound)
        assert noise[found] <= bound * (1 + 1e-6)
        assert costs[found] == pytest.approx(min(costs[c] for c in every if noise[c] <= bound))
        budget = float(np.quantile(list(costs.values()), quantile))
        found = program.quietest(budget)
        assert costs[found] <= budget * (1 + 1e-6)
        assert noise[found] == pytest.approx(min(noise[c] for c in every if costs[c] <= budget), rel=1e-5, abs=1e-9)
    with pytest.raises(ModelError, match="no choice of formats"):
        program.quietest(min(costs.values()) * 0.9)


def _stack(layers: int = 3) -> NetworkBuilder:
    b = NetworkBuilder("stack", 0)
    x = b.input("x", 4, 6, 6)
    for index in range(layers):
        x = b.op("Relu", f"act{index}", b.conv(f"conv{index}", x, 4, 3))
    b.output("y", x)
    return b


def test_bit_operations_by_hand() -> None:
    """Multiply-adds times both widths, and what is converted where two formats meet."""
    network = _stack(2).build()
    sim = simulator(network)
    sim.calibrate([network.batch(4)])
    groups = Groups(sim.simulation)
    assert [group.name for group in groups.all] == ["conv0", "conv1", "output act1"]
    candidates = parse_candidates(sim.simulation, ["int8", "int16", "float"])
    costs = costs_of(groups, candidates, cost_table("bits", sim.target, candidates))
    adds = [multiply_adds(sim.graph, sim.graph.node(name)) for name in ("conv0", "conv1")]
    read, written = 4 * 6 * 6, 4 * 6 * 6  # padding keeps the size
    assert adds[0] == 4 * 4 * 9 * 36
    first = CONVERSION * read * 32 * 8  # the input comes in float
    assert costs.of((0, 0, 0)) == first + (adds[0] + adds[1]) * 64
    wide = adds[0] * 64 + adds[1] * 256 + 2 * CONVERSION * written * 8 * 16
    assert costs.of((0, 1, 0)) == first + wide
    assert costs.of((2, 2, 2)) == (adds[0] + adds[1]) * 1024
    # a convolution whose result stays in float runs in float, whatever it reads
    assert costs.of((0, 2, 2)) == first + (adds[0] + adds[1]) * 1024 + CONVERSION * written * 32 * 8


def test_no_island_that_costs_two_conversions() -> None:
    """Wide layers on both sides of a narrow one that gains less than the conversions: it becomes wide too."""
    network = _stack(3).build()
    sim = simulator(network)
    sim.calibrate([network.batch(4)])
    groups = Groups(sim.simulation)
    candidates = parse_candidates(sim.simulation, ["int8", "int16"])
    table = {"int8": 1.0, "int16": 1.1, "conversion": 1000.0}
    costs = costs_of(groups, candidates, cost_table(table, sim.target, candidates))
    noise = np.array([[1.0, 1e-6], [1e-3, 1e-6], [1.0, 1e-6], [1e-3, 1e-6]])
    assert Program(costs, noise).within(0.01) == (1, 1, 1, 1)
    free = costs_of(groups, candidates, cost_table(table | {"conversion": 0.0}, sim.target, candidates))
    assert Program(free, noise).within(0.01) == (1, 0, 1, 0)


def test_what_flips_together() -> None:
    """Both operands of a sum, what a MaxPool ties, and what reads one tensor."""
    b = NetworkBuilder("block", 0)
    x = b.input("x", 4, 8, 8)
    stem = b.op("Relu", "stem_act", b.conv("stem", x, 4, 3))
    inner = b.conv("inner", stem, 4, 3)
    total = b.op("Add", "sum", stem, inner)
    pooled = b.op("MaxPool", "pool", total, kernel_shape=[2, 2], strides=[2, 2])
    b.output("y", b.conv("last", pooled, 4, 1))
    network = b.build()
    sim = simulator(network)
    sim.calibrate([network.batch(2)])
    groups = Groups(sim.simulation)
    sites = [{str(placement.site) for placement in group.placements} for group in groups.all]
    assert {"stem_act", "inner", "inner.weight"} in sites
    assert {"sum", "pool", "last.weight"} in sites
    assert len(sites) == 4


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        ("bit", "did you mean 'bits'"),
        ("milliseconds", "has no times of multiply-adds"),
        ({"int8": 1, "conversion": 1}, "no 'float'"),
        ({"int8": 1, "float": float("nan"), "conversion": 1}, "must be a number from 0"),
    ],
)
def test_costs_that_say_nothing(cost, message) -> None:
    sim = simulator(_stack(1).build())
    candidates = parse_candidates(sim.simulation, ["int8", "float"])
    with pytest.raises(FormatError, match=message):
        cost_table(cost, sim.target, candidates)


def test_milliseconds_of_a_table() -> None:
    """16 bits have no kernels there: float, and conversions around it."""
    sim = simulator(_stack(2).build(), "onnxruntime-cpu")
    sim.calibrate([_stack(2).build().batch(4)])
    candidates = parse_candidates(sim.simulation, ["int8", "int16", "float"])
    costs = costs_of(Groups(sim.simulation), candidates, cost_table("milliseconds", sim.target, candidates))
    narrow, wide, exact = (costs.of((index,) * costs.single.shape[0]) for index in range(3))
    assert wide > exact > 0
    assert narrow > 0
    assert costs.unit == "ms"


def test_weights_that_are_integers_for_their_size_alone() -> None:
    """An LSTM in onnxruntime runs in float: its weights are one group, whose width is paid, its input is converted."""
    network = NETWORKS["recurrent"]()
    sim = simulator(network, "onnxruntime-cpu")
    sim.calibrate([network.batch(4)])
    groups = Groups(sim.simulation)
    lstm = next(group for group in groups.all if any(node.op == "LSTM" for node in group.nodes))
    assert {placement.kind for placement in lstm.placements} == {"weight"}
    candidates = parse_candidates(sim.simulation, ["int8", "float"])
    costs = costs_of(groups, candidates, cost_table("bits", sim.target, candidates))
    row = costs.single[groups.all.index(lstm)]
    assert row[1] == 4 * row[0]


@pytest.mark.parametrize("seed", [1, 3])
def test_no_gap_of_the_curve_hides_a_point(seed: int) -> None:
    """Against all 32 choices: each has one on the curve that costs no more and is a quarter of a decibel worse."""
    rng = np.random.default_rng(seed)
    cost, noise = 10 ** rng.uniform(-3, 0, 5), 10 ** rng.uniform(-4, -1, 5)
    single = np.stack([np.ones(5), 1 + cost], 1)
    program = Program(Costs(single, {}, "units"), np.stack([noise, noise * 10 ** rng.uniform(-4, -1, 5)], 1))
    search = Search.__new__(Search)
    search.program, search._choices, search._measured = program, {}, {}
    search.draw_curve()
    curve = [(program.costs.of(choice), program.noise_of(choice)) for choice in search.choices()]
    for choice in product((0, 1), repeat=5):
        c, n = program.costs.of(choice), program.noise_of(choice)
        assert any(a <= c * (1 + 1e-6) and b <= n * 10**0.025 for a, b in curve), choice
