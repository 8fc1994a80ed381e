"""Convolutions that stay in float because integers, and the conversions around them, take longer there."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product
from math import ceil

import numpy as np
import pytest
from registries import own_registry

from isobit.graph import Graph, Tensor, TensorInfo, Weight
from isobit.placement import Plan, QuantConfig, place
from isobit.placement.coverage import Coverage
from isobit.placement.gain.cheapest_cut import CheapestCut
from isobit.placement.gain.tensor_sizes import TensorSizes
from isobit.placement.left_weights import left_weights
from isobit.targets import ConvolutionCosts, Target
from isobit.testing.networks import NetworkBuilder

TARGET = own_registry().target("onnxruntime-cpu")
REASON = "integers gain no time here on onnxruntime-cpu"
#: Times by which every choice of the networks below is worth more than a plan is changed for.
CHIP = ConvolutionCosts(
    *("a chip", 16, 20.0, 6.0, 150.0, 200.0, 2500.0, 250.0, 300.0, 200.0, 3e4), curves={"HardSwish": 700.0}
)


def on(*tables: ConvolutionCosts) -> Target:
    return replace(TARGET, convolutions=tables)


def in_float(graph: Graph, plan: Plan) -> set[str]:
    """The convolutions whose results stay in float for their time."""
    return {node.name for node in graph.nodes if node.op == "Conv" and plan.floats.get(node.outputs[0]) == REASON}


def lc_net(size: int = 224, width: int = 16, curve: str = "HardSwish", *, is_open: bool = False) -> Graph:
    """Depthwise and pointwise layers in turns, wider as pictures get smaller, and a classifier."""
    b = NetworkBuilder("lc", 0)
    h = b.op(curve, "stem.curve", b.conv("stem", b.input("x", 3, size, size), width, stride=2))
    for index in range(4):
        channels = width << index
        h = b.op(curve, f"{index}.d.curve", b.conv(f"{index}.d", h, channels, stride=1 + (index > 0), group=channels))
        h = b.op(curve, f"{index}.p.curve", b.conv(f"{index}.p", h, 2 * channels, 1))
    b.output("y", b.linear("logits", b.reshape("flat", b.global_pool("pool", h), -1, 16 * width), 10))
    graph = b.build().graph
    if not is_open:
        return graph
    maps = {name: (info, info.shape) for name, info in graph.tensors.items() if info.channel_axis == 1}
    opened = {
        name: replace(info, shape=(*shape[:2], f"h.{name}", f"w.{name}"))
        for name, (info, shape) in maps.items()
        if shape is not None and len(shape) == 4 and shape[2:] != (1, 1)
    }
    return replace(graph, tensors={**graph.tensors, **opened})


# --- what is decided ----------------------------------------------------------------------------------------------


def test_the_thin_end_runs_in_float_and_the_wide_one_on_integers() -> None:
    graph = lc_net()
    plan = place(graph, TARGET)
    assert {"stem", "0.d", "0.p"} <= in_float(graph, plan)
    assert Tensor("3.p") in plan.placements
    assert {"3.p", "2.p"}.isdisjoint(in_float(graph, plan))
    assert Tensor("x") not in plan.placements


def test_their_weights_are_integers_for_their_size() -> None:
    graph = lc_net()
    plan = place(graph, TARGET)
    assert all(Weight(f"{name}.weight") in plan.placements for name in in_float(graph, plan))
    assert all(Weight(f"{name}.bias") not in plan.placements for name in in_float(graph, plan))
    assert not left_weights(graph, plan, TARGET, QuantConfig())
    assert Coverage.of(graph, plan).weights == pytest.approx(1, abs=0.01)
    assert 0.5 <= (Coverage.of(graph, plan).compute or 0) < 1


def test_it_is_said() -> None:
    graph = lc_net()
    (note,) = (note for note in place(graph, TARGET).notes if "thin" in note)
    assert note.startswith(f"stem and {len(in_float(graph, place(graph, TARGET))) - 1} other convolutions: in float")


def test_the_note_counts_layers_whose_weights_are_integers() -> None:
    graph = lc_net()
    plan = place(graph, TARGET, QuantConfig(overrides={"stem.weight": None}))
    (note,) = (note for note in plan.notes if "thin" in note)
    assert "stem" in in_float(graph, plan)
    assert note.startswith(f"0.d and {len(in_float(graph, plan)) - 2} other convolutions: in float, on weights that")


def test_networks_of_wide_layers_stay_on_integers() -> None:
    graph = lc_net(width=96, curve="Relu")
    assert not in_float(graph, place(graph, TARGET))


def test_networks_for_which_little_time_is_gained_are_left_alone() -> None:
    graph = lc_net(size=32)
    assert not in_float(graph, place(graph, TARGET))
    assert in_float(graph, place(graph, on(CHIP)))


def test_open_sizes_count_as_pictures_have_them() -> None:
    """A stride divides open sizes too, so that the thin end is where it is with sizes that are known."""
    known, opened = lc_net(64), lc_net(64, is_open=True)
    assert opened.tensors["2.p"].shape == ("batch", 128, "h.2.p", "w.2.p")
    assert in_float(opened, place(opened, on(CHIP))) == in_float(known, place(known, on(CHIP)))
    lines = replace(opened, tensors={name: _of_height(info) for name, info in opened.tensors.items()})
    sizes = [TensorSizes(graph).elements("1.p") for graph in (known, opened, lines)]
    assert sizes == [16384, 16384, 16384]  # 64 channels of 16 x 16


def _of_height(info: TensorInfo) -> TensorInfo:
    """The tensor of a picture of 64 rows whose width is open, as a line of text has it."""
    if info.shape is None or info.shape[2:3] == () or isinstance(info.shape[2], int):
        return info
    rows = {"x": 64, "stem": 32, "0": 32, "1": 16, "2": 8, "3": 4}[str(info.shape[2]).split(".")[1]]
    return replace(info, shape=(*info.shape[:2], rows, info.shape[3]))


@pytest.mark.parametrize("config", [{"activations": "uint16"}, {"weights": "int4"}])
def test_costs_are_those_of_the_own_formats_of_a_target(config: dict[str, str]) -> None:
    graph = lc_net()
    assert not in_float(graph, place(graph, TARGET, QuantConfig(**config)))


@pytest.mark.parametrize("name", ["stem.weight", "stem", "x"])
def test_what_the_user_gives_a_format_runs_on_integers(name: str) -> None:
    graph = lc_net()
    given = QuantConfig(overrides={name: "int8" if name.endswith("weight") else "uint8"})
    assert "stem" not in in_float(graph, place(graph, TARGET, given))


def test_one_plan_serves_all_processors() -> None:
    """A convolution that gains on one of them runs on integers."""
    graph = lc_net()
    fast = replace(TARGET.convolutions[0], integer_tap=0.0, integer_multiply=0.0, integer_element=0.0, quantize=0.0)
    assert not in_float(graph, place(graph, on(*TARGET.convolutions, replace(fast, dequantize=0.0, curves={}))))
    assert not in_float(graph, place(graph, on()))


def test_half_of_the_multiply_adds_stay_on_integers() -> None:
    """A chip that gains nothing from integers: what was asked for is done all the same."""
    graph = lc_net()
    plan = place(graph, on(replace(CHIP, integer_multiply=30.0)))
    share = Coverage.of(graph, plan).compute
    assert in_float(graph, plan)
    assert share is not None
    assert 0.5 <= share < 0.9


def test_narrow_groups_are_thin() -> None:
    """onnxruntime computes groups one after the other: of 4 channels each they take 2.5 times as long on integers."""
    b = NetworkBuilder("groups", 0)
    h = b.op("Relu", "a.relu", b.conv("a", b.input("x", 3, 160, 160), 64, stride=2))
    h = b.op("Relu", "b.relu", b.conv("b", h, 64, group=16))
    for index in range(3):
        h = b.op("Relu", f"{index}.relu", b.conv(f"{index}", h, 64 << index, stride=2))
    b.output("y", h)
    graph = b.build().graph
    assert "b" in in_float(graph, place(graph, TARGET))
    wide = replace(graph, nodes=tuple(replace(n, attributes={**n.attributes, "group": 1}) for n in graph.nodes))
    assert "b" not in in_float(wide, place(wide, TARGET))


# --- against all divisions there are ------------------------------------------------------------------------------


def chain(seed: int) -> tuple[Graph, list[tuple[float, ...]], list[bool]]:
    """Convolutions in a row; of each what it takes in float, on integers, elements read and written; and its curve."""
    random = np.random.default_rng(seed)
    b = NetworkBuilder("chain", seed)
    size, channels, layers, curved = 32, 3, [], []
    h = b.input("x", channels, size, size)
    for index in range(5):
        depthwise, stride = index > 0 and random.random() < 0.5, int(random.integers(1, 3))
        out = channels if depthwise else int(random.choice([8, 16, 24, 64]))
        kernel = int(random.choice([1, 3]))
        group = channels if depthwise else 1
        h = b.conv(f"c{index}", h, out, kernel, stride=stride, group=group)
        curved.append(bool(random.random() < 0.6))
        h = b.op("HardSwish" if curved[-1] else "Relu", f"c{index}.curve", h)
        read, size = channels * size * size, ceil(size / stride)
        written, taps = out * size * size, kernel * kernel
        products = written * taps * channels / group
        blocks = ceil(out / 16) * 16 / out
        gathered = size * size * taps if kernel > 1 and (group > 1 or channels % 16) else 0
        has_many_weights = out * taps * channels / group > read + written  # these stay on integers
        floats = float("inf") if has_many_weights else blocks * (20.0 * products + 150.0 * (read + written))
        layers.append((floats, 6.0 * products + 200.0 * written + 2500.0 * gathered, read, written, products, channels))
        channels = out
    b.output("y", h)
    return b.build().graph, layers, curved


def time_of(choice: tuple[bool, ...], layers: list[tuple[float, ...]], curved: list[bool]) -> float:
    """What a chain takes with some layers on integers, counted by walking along it; infinite where forbidden."""
    total, before = 0.0, "input"
    for on_integers, (floats, integers, read, written, _, channels), curve in zip(choice, layers, curved, strict=True):
        if on_integers:
            total += integers
            if before != "integers":  # a quantizer; what a float layer wrote leaves its layout first
                total += 300.0 * read + 3e4 + (250.0 * read + 3e4 if before == "blocks" else 0.0)
        else:
            total += floats
            if before == "integers":
                return float("inf")
            if before == "floats" or (before == "input" and channels >= 16):
                total += 250.0 * read + 3e4
        if on_integers and curve:
            total += (200.0 + 700.0) * written + 3e4
        before = ("floats" if curve else "integers") if on_integers else "blocks"
        last = written
    if before == "integers":
        total += 200.0 * last + 3e4
    return total + (250.0 * last + 3e4 if before == "blocks" else 0.0)


def test_no_division_of_a_chain_takes_less() -> None:
    """All 32 divisions of 40 chains, of those that keep half of the multiply-adds on integers."""
    moved = 0
    for seed in range(40):
        graph, layers, curved = chain(seed)
        chosen = in_float(graph, place(graph, on(CHIP)))
        choice = tuple(f"c{index}" not in chosen for index in range(5))
        choices = list(product((True, False), repeat=5))
        least = min(choices, key=lambda c: time_of(c, layers, curved))
        share = sum(layer[4] for layer, on_integers in zip(layers, least, strict=True) if on_integers)
        if share < 0.5 * sum(layer[4] for layer in layers):
            continue  # then less may be gained for keeping them
        moved += bool(chosen)
        all_integers = time_of((True,) * 5, layers, curved)
        if chosen:
            assert time_of(choice, layers, curved) == pytest.approx(time_of(least, layers, curved), rel=1e-6), seed
        else:
            assert time_of(least, layers, curved) > 0.949 * all_integers, seed
    assert moved > 5


def test_a_cut_costs_least_of_all() -> None:
    random = np.random.default_rng(0)
    for _ in range(100):
        cut, names = CheapestCut(), list("abcdef"[: random.integers(1, 7)])
        for name in names:
            cut.add(CheapestCut.INTEGERS, name, random.random())
            cut.add(name, CheapestCut.FLOAT, random.random())
        pairs = [pair for pair in product(names, repeat=2) if pair[0] != pair[1] and random.random() < 0.4]
        forbidden = [pair for pair in pairs if random.random() < 0.2]
        for pair in pairs:
            if pair in forbidden:
                cut.forbid(*pair)
            else:
                cut.add(*pair, 0.5 * random.random())
        sides = [
            frozenset({CheapestCut.INTEGERS, *part})
            for count in range(len(names) + 1)
            for part in combinations(names, count)
            if not any(one in part and other not in part for one, other in forbidden)
        ]
        found = cut.integers()
        assert found in sides
        assert cut.cost(found) == pytest.approx(min(map(cut.cost, sides)), abs=1e-6)
