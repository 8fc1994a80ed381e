"""BalanceChannels: every bit of the function stays, integers of depthwise weights too, and the error falls."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sketch import Sketch
from technique_networks import opened, simulator

import isobit
from isobit.encodings.ranges import encode_weight
from isobit.errors import DataError, FormatError
from isobit.graph import Tensor
from isobit.graph.sites import Weight
from isobit.quantsim.checks.quality import output_sqnr
from isobit.techniques import BalanceChannels
from isobit.techniques.input_scaling.regions import find_region
from isobit.testing.networks import Network, NetworkBuilder

TARGETS = ("default", "onnxruntime-cpu")
ALL = BalanceChannels(mul_gain=0, mul_share=0)


def uneven(network: Network, seed: int, *layers: str, octaves: float = 2.0) -> Network:
    """Channels of very different sizes behind these layers; the next layers take that back, but for curves between."""
    rng = np.random.default_rng(seed)
    weights = {name: np.array(value) for name, value in network.weights.items()}
    for layer in layers:
        rows = weights[f"{layer}.weight"]
        factor = np.exp2(octaves * rng.standard_normal(len(rows))).astype(np.float32)
        rows *= factor.reshape(-1, 1, 1, 1)
        weights[f"{layer}.bias"] *= factor
        for reader in READERS.get(layer, ()):
            columns = weights.get(f"{reader}.weight")
            if columns is not None:
                columns /= factor.reshape((-1, 1, 1, 1) if reader == "depthwise" else (1, -1, 1, 1))
    return Network(network.name, network.graph, weights)


READERS = {"expand": ("depthwise",), "depthwise": ("project", "squeeze"), "first": ("depthwise",)}


def block(
    seed: int = 0, *, curve: str = "HardSwish", gate: bool = False, size: int = 8, octaves: float = 2.0
) -> Network:
    """Expand, depthwise, gate and project, as MobileNetV3 does, with uneven channels."""
    b = NetworkBuilder("block", seed)
    x = b.input("x", 4, size, size)
    h = activation(b, curve, "act1", b.conv("expand", x, 12, 1))
    h = activation(b, curve, "act2", b.conv("depthwise", h, 12, 3, group=12))
    if gate:
        squeezed = b.op("Relu", "relu", b.conv("squeeze", b.op("GlobalAveragePool", "pool", h), 4, 1))
        h = b.op("Mul", "gated", h, b.op("Sigmoid", "gate", b.conv("excite", squeezed, 12, 1)))
    b.output("y", b.conv("project", h, 6, 1))
    return uneven(b.build(), seed, "expand", "depthwise", octaves=octaves)


def activation(b: NetworkBuilder, op: str, name: str, x: str) -> str:
    return b.op(op, name, x, min=0.0, max=6.0) if op == "Clip" else b.op(op, name, x)


def balanced(
    network: Network, technique: BalanceChannels = ALL, target: str = "onnxruntime-cpu", samples: int = 16, **config
):
    sim = simulator(network, target, **config)
    (report,) = sim.apply(technique, data=network.batch(samples))
    return sim, report


def sqnr(network: Network, *techniques: BalanceChannels, target: str = "onnxruntime-cpu", **config) -> float:
    sim, data, new = simulator(network, target, **config), network.batch(32), network.batch(64, seed=1)
    expected = sim.backend_model.run(new)
    sim.apply(*techniques, data=data)
    sim.calibrate(data)
    return output_sqnr([expected], [sim.run(new)])


def assert_same_bits(network: Network, sim, seed: int = 3) -> None:
    batch = network.batch(5, seed)
    for name, value in opened(network).run(batch).items():
        assert np.abs(value).max() > 0
        np.testing.assert_array_equal(sim.backend_model.run(batch)[name], value)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("curve", "gate"), [("HardSwish", False), ("Swish", True), ("Relu", True)])
def test_every_bit_of_the_function_stays(target: str, curve: str, gate: bool) -> None:
    for seed in range(2):
        network = block(seed, curve=curve, gate=gate)
        sim, report = balanced(network, target=target)
        assert report.changed
        assert_same_bits(network, sim)


def test_every_bit_stays_through_slopes_by_channel() -> None:
    b = NetworkBuilder("prelu", 0)
    h = b.conv("expand", b.input("x", 4, 6, 6), 8, 1)
    slope = b.weight("slope", np.random.default_rng(0).uniform(0.1, 0.5, 8))
    b.output("y", b.conv("project", b.op("PRelu", "act", h, slope), 5))
    network = uneven(b.build(), 0, "expand")
    sim, report = balanced(network)
    assert report.changed
    assert_same_bits(network, sim)


@pytest.mark.parametrize("target", TARGETS)
def test_noise_falls_by_decibels_behind_curves_and_before_them(target: str) -> None:
    plain, behind, both = [], [], []
    for seed in range(2):
        network = block(seed)
        plain.append(sqnr(network, target=target))
        behind.append(sqnr(network, BalanceChannels(muls=False), target=target))
        both.append(sqnr(network, BalanceChannels(), target=target))
    assert np.mean(behind) == pytest.approx(np.mean(plain), abs=0.5)  # no factor passes a curve for nothing
    assert np.mean(both) > np.mean(plain) + 4


def test_relu_lets_factors_through_for_nothing() -> None:
    network = block(5, curve="Relu")
    sim, report = balanced(network, BalanceChannels(muls=False))
    assert {text.partition(":")[0] for text in report.changed} == {"act1", "act2"}
    assert all(text.endswith("costs nothing") for text in report.changed)
    assert len(sim.graph.nodes) == len(network.graph.nodes)
    assert sqnr(network, BalanceChannels(muls=False)) > sqnr(network) + 3


def test_integers_of_depthwise_weights_stay() -> None:
    network = block(2)
    plain = simulator(network, "default")
    sim, _ = balanced(network, target="default")
    for name in ("expand.weight", "depthwise.weight"):
        before, after = plain.backend_model.weight(name), sim.backend_model.weight(name)
        assert not np.array_equal(before, after)
        spec = sim.plan.placements[Weight(name)].spec
        integers = [np.rint(w / encode_weight(w, spec).broadcast(w.shape)[0]) for w in (before, after)]
        np.testing.assert_array_equal(*integers)


@pytest.mark.parametrize("target", TARGETS)
def test_only_what_is_balanced_is_rounded(target: str) -> None:
    """Conv -> quantizer -> Mul -> curve -> Mul -> quantizer -> depthwise Conv, and the factors stay as they are."""
    sim, report = balanced(block(1), target=target)
    floats_at_the_input = target == "onnxruntime-cpu"  # where a Mul would gain nothing from integers
    assert sum("a Mul" in text for text in report.changed) == 4 + floats_at_the_input
    rounded = {site for site, placement in sim.plan.placements.items() if placement.kind == "activation"}
    for node in sim.graph.nodes:
        if node.op == "Mul":
            before = sim.graph.producer(node.inputs[0])
            if before is None:
                assert floats_at_the_input
                assert Tensor("x") not in rounded
                continue
            assert (Tensor(node.inputs[0]) in rounded) == (before.op == "Conv")
            assert (Tensor(node.outputs[0]) in rounded) == (before.op == "HardSwish")
            assert Weight(node.inputs[1]) not in sim.plan.placements
            assert sim.plan.floats


def test_a_gate_carries_the_factors_of_what_it_opens() -> None:
    """Behind the depthwise layer pool, gate and product read the tensor: all of them take the same factors."""
    network = block(4, curve="Relu", gate=True)
    sim, report = balanced(network, BalanceChannels(muls=False))
    (text,) = (text for text in report.changed if text.startswith("act2"))
    assert "behind squeeze, project" in text
    factors = sim.backend_model.weight("project.weight")[0, :, 0, 0] / network.weights["project.weight"][0, :, 0, 0]
    squeezed = sim.backend_model.weight("squeeze.weight")[0, :, 0, 0] / network.weights["squeeze.weight"][0, :, 0, 0]
    np.testing.assert_array_equal(factors, squeezed)
    assert factors.min() < 1 <= factors.max()
    np.testing.assert_array_equal(np.frexp(factors)[0], 0.5)


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_clipped_by_the_kernel_of_the_layer_is_left_alone(target: str) -> None:
    """ReLU6 runs with the layer before it, and its result is rounded before a Mul could stand behind it."""
    _, report = balanced(block(6, curve="Clip"), target=target)
    assert not [text for text in report.changed if text.startswith("act")]
    assert "other side of a Mul" in report.left["act1"]


@pytest.mark.parametrize("source", ["affine", "minus", "floor", "divided", "BatchNormalization", "shared"])
def test_constants_that_are_there_already_take_the_factors(source: str) -> None:
    b, rng = NetworkBuilder("constants", 0), np.random.default_rng(1)
    h = b.op("HardSwish", "act", b.conv("first", b.input("x", 4, 6, 6), 8, 1))
    sizes = np.exp2(rng.uniform(-3, 3, (8, 1, 1)))
    scale = b.weight("scale", 1 / sizes if source == "divided" else sizes)
    if source == "divided":
        h = b.op("Div", "scaled", h, scale)
    elif source == "BatchNormalization":
        mean, variance = b.weight("mean", np.zeros(8)), b.weight("variance", np.ones(8))
        shift = b.weight("shift", sizes.reshape(-1) / 3)
        h = b.op(
            "BatchNormalization", "scaled", h, b.weight("gain", sizes.reshape(-1)), shift, mean, variance, epsilon=1e-5
        )
    elif source == "minus":
        h = b.op("Sub", "shifted", b.op("Mul", "scaled", h, scale), b.weight("offset", np.full(1, 0.25)))
    elif source == "floor":
        h = b.op("Max", "bounded", b.op("Mul", "scaled", h, scale), b.weight("floor", np.full(1, -0.1)))
    elif source == "shared":  # another Mul reads the constant too, which must not see the change
        h = b.op("Mul", "scaled", h, scale)
    else:
        h = b.op("Add", "shifted", b.op("Mul", "scaled", h, scale), b.weight("offset", np.full((1, 8, 1, 1), 0.25)))
    y = b.conv("project", h, 6, 1)
    if source == "shared":
        y = b.op("Mul", "other", b.conv("eight", y, 8, 1), scale)
    b.output("y", y)
    network = b.build()
    # the target leaves elementwise arithmetic in float, so that its constants have no grid that factors could spoil
    sim, report = balanced(network, BalanceChannels(muls=False), target="onnxruntime-cpu-transformer")
    assert any("behind project" in text and text.endswith("in scaled, costs nothing") for text in report.changed)
    assert len(sim.graph.nodes) == len(network.graph.nodes)
    assert_same_bits(network, sim)


def test_constants_on_a_grid_take_none() -> None:
    """The factors of such a product come from farther up, and pass it."""
    b = NetworkBuilder("grid", 0)
    sizes = np.exp2(np.random.default_rng(1).uniform(-3, 3, (8, 1, 1)))
    h = b.op("Mul", "scaled", b.conv("first", b.input("x", 4, 6, 6), 8, 1), b.weight("scale", sizes))
    b.output("y", b.conv("project", h, 6, 1))
    sim, report = balanced(b.build(), target="default")
    (text,) = report.changed
    assert text.startswith("first: ")
    np.testing.assert_array_equal(sim.backend_model.weight("scale"), sizes.astype(np.float32))


def test_who_else_reads_keeps_what_it_had() -> None:
    """A residual sum takes no factors; the layer beside it gets them by a Mul where the tensor is there in float."""
    b = NetworkBuilder("residual", 0)
    h = b.op("HardSwish", "act", b.conv("first", b.input("x", 4, 6, 6), 8, 1))
    inner = b.conv("depthwise", h, 8, 3, group=8)
    b.output("y", b.conv("last", b.op("Add", "sum", h, inner), 5, 1))
    network = uneven(b.build(), 3, "first")
    sim, report = balanced(network)
    assert any(text.startswith("act:") and "behind depthwise" in text for text in report.changed)
    assert_same_bits(network, sim)
    assert sqnr(network, ALL) > sqnr(network) + 1
    _, report = balanced(network, target="default")  # HardSwish itself rounds there
    assert "other side of a Mul" in report.left["act"]


def test_ties_and_products_take_none() -> None:
    b = NetworkBuilder("ties", 0)
    h = b.op("HardSwish", "act", b.conv("first", b.input("x", 4, 6, 6), 8, 1))
    joined = b.op("Concat", "joined", b.conv("left", h, 4, 1), b.conv("right", h, 4, 1), axis=1)
    squared = b.op("Mul", "squared", joined, joined)
    b.output("y", b.conv("last", squared, 5, 1))
    network = uneven(b.build(), 3, "first", "left", "right")
    sim, report = balanced(network, target="default")
    assert "multiplies it by itself" in report.left["joined"]
    assert "Concat" in report.left["left"]
    assert_same_bits(network, sim)


def test_silent_constant_and_one_sided_channels_and_one_sample() -> None:
    for target in TARGETS:
        network = block(7)
        weights = {name: np.array(value) for name, value in network.weights.items()}
        weights["expand.weight"][0] = weights["expand.bias"][0] = 0  # never fires
        weights["expand.weight"][1], weights["expand.bias"][1] = 0, 3  # constant
        weights["expand.weight"][2], weights["expand.bias"][2] = 0, -1  # constant below zero
        weights["depthwise.weight"][3] = 0  # nothing comes of it
        weights["project.weight"][:] = 0
        network = Network("silent", network.graph, weights)
        sim = simulator(network, target)
        sim.apply(ALL, data=network.batch(1))
        assert all(np.all(np.isfinite(sim.backend_model.weight(name))) for name in sim.graph.weights)
        sim.calibrate(network.batch(1))
        assert np.all(np.isfinite(sim.run(network.batch(2))["y"]))


def test_factors_stay_where_float32_has_all_its_bits() -> None:
    network = block(8, curve="Relu")
    weights = {name: np.array(value) for name, value in network.weights.items()}
    weights["expand.weight"][0] *= 1e-30
    weights["expand.bias"][0] = 0
    weights["depthwise.weight"][1:3] = np.float32(2e-38)  # nothing below is normal
    weights["expand.weight"][1:3] *= 1e-3
    network = Network("tiny", network.graph, weights)
    sim, report = balanced(network)
    assert report.changed
    assert_same_bits(network, sim)
    np.testing.assert_array_equal(sim.backend_model.weight("depthwise.weight")[1:3] / np.float32(2e-38) >= 1, True)


def test_not_a_number_and_float_grids_are_left_alone() -> None:
    network = block(9, curve="Relu")
    data = {"x": np.array(network.batch(4)["x"])}
    data["x"][0, 0, 0, 0] = np.nan
    sim = simulator(network)
    (report,) = sim.apply(ALL, data=data, ignore_non_finite=True)
    assert not report.changed
    assert "NaN" in report.left["act1"]
    _, report = balanced(network, target="default", activations="float8e4m3")
    assert not report.changed
    assert "none of integers" in report.left["act1"]
    _, report = balanced(network, weights="int8 per-tensor")  # a scale for all rows does not carry factors
    assert not any(text.endswith("costs nothing") for text in report.changed)


def test_what_it_needs_and_refuses() -> None:
    with pytest.raises(DataError, match="BalanceChannels needs data"):
        simulator(block(0)).apply(BalanceChannels())
    for wrong in ({"mul_gain": -1}, {"mul_gain": float("nan")}, {"mul_share": -0.1}):
        with pytest.raises(FormatError):
            BalanceChannels(**wrong)
    b = NetworkBuilder("plain", 0)
    b.output("y", b.op("Relu", "relu", b.input("x", 4)))
    _, report = balanced(b.build())
    assert report.left


def test_squares_of_squares_do_not_take_long() -> None:
    b = NetworkBuilder("squares", 0)
    h = b.op("Relu", "relu", b.conv("first", b.input("x", 4, 3, 3), 8, 1))
    for index in range(64):
        h = b.op("Mul", f"square{index}", h, h)
    b.output("y", b.conv("last", h, 5, 1))
    network = b.build()
    sim = simulator(network)
    (report,) = sim.apply(ALL, data={"x": network.batch(2)["x"] * np.float32(0.01)})
    assert "multiplies it by itself" in report.left["relu"]


def test_it_is_a_step_of_a_recipe(tmp_path) -> None:
    file = tmp_path / "balanced.toml"
    file.write_text(
        'schema = 1\nname = "balanced"\ndescription = "channels, then biases"\njudge_samples = 16\n'
        '[[steps]]\ntechnique = "BalanceChannels"\nsettings = { mul_gain = 2.0 }\n'
        '[[steps]]\ntechnique = "CorrectBias"\n'
    )
    network = block(1)
    sim = isobit.quantize(simulator(network, "onnxruntime-cpu"), network.batch(32), recipe=file, progress=False)
    assert sim.steps[0].outcome == "kept"
    assert sim.steps[0].after > sim.steps[0].before + 3


def test_muls_take_no_more_time_than_is_allowed() -> None:
    network = block(1)
    counts = []
    for share in (0.0, 0.3, 10.0):
        sim, report = balanced(network, BalanceChannels(mul_gain=0, mul_share=0, mul_time=share))
        counts.append(sum(node.op == "Mul" for node in sim.graph.nodes))
        allowed = [text for text in report.left.values() if "more time" in text]
        assert bool(allowed) == (share < 10)
    assert counts[0] == 0
    assert 0 < counts[1] < counts[2]


def test_the_default_recipe_balances_where_that_gains_much() -> None:
    uneven_network, even = (block(5, curve="Relu", octaves=octaves) for octaves in (2.5, 0.0))
    for network in (uneven_network, even):
        sim = isobit.quantize(simulator(network, "onnxruntime-cpu"), network.batch(32), progress=False)
        step = next(step for step in sim.steps if step.step == "BalanceChannels")
        if network is even:
            assert step.outcome in ("changed nothing", "rolled back")
        else:
            assert step.outcome == "kept"
            assert step.after > step.before + 1
    sim = isobit.quantize(simulator(uneven_network, "onnxruntime-cpu"), iter([uneven_network.batch(32)]))
    assert "the data serves once" in next(step for step in sim.steps if step.step == "BalanceChannels").why


def test_a_state_whose_channels_are_not_known_is_said_with_who_reads_it() -> None:
    sketch = Sketch(0)
    x = sketch.input("x", 7, "N", 5)
    last = sketch.node("LSTM", x, sketch.random("w", 12, 5), sketch.random("r", 12, 3), name="lstm", shape=(7, "N", 3))
    graph = sketch.graph(sketch.node("Tanh", last, name="tanh", shape=(7, "N", 3)))
    graph = replace(graph, tensors={**graph.tensors, last: replace(graph.tensors[last], channel_axis=None)})
    assert str(find_region(graph, last)) == (
        "which of its axes holds channels is not known, and so not what tanh (Tanh) would do with their factors"
    )
