"""Noise that is followed back from the outputs, against brute force, and what an analysis says in words."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from technique_networks import chain, simulator

import isobit
from isobit.analysis import advise as advise_module
from isobit.analysis import trials as trials_module
from isobit.analysis.findings import Advice
from isobit.analysis.local_gains import LocalGain, local_gain
from isobit.analysis.measure_errors import copies, measure_errors
from isobit.analysis.range_setters import SampleBounds
from isobit.analysis.site_errors import decibels
from isobit.analysis.tensor_noise import Kept
from isobit.analysis.trials import Trials, ratios_of_samples
from isobit.analysis.weight_noise import measure_weights
from isobit.errors import DataError, FormatError, ModelError
from isobit.testing.networks import NETWORKS


def test_gains_forward_and_backward_are_one_matrix() -> None:
    rng = np.random.default_rng(0)
    matrix = LocalGain(6, 4, np.ones(4), matrix=rng.uniform(size=(2, 2, 3)))
    alike = LocalGain(4, 4, rng.uniform(size=4), by_channel=True)
    mixed = LocalGain(3, 4, rng.uniform(size=4))
    part = LocalGain(2, 4, np.ones(4), part=slice(1, 3))
    for gain in (matrix, alike, mixed, part):
        columns = np.stack([gain.forward(unit) for unit in np.eye(gain.inputs)], axis=1)
        importance = rng.uniform(size=4)
        np.testing.assert_allclose(gain.backward(importance), importance @ columns)


def test_positions_are_the_same_however_data_are_cut() -> None:
    x = np.random.default_rng(0).standard_normal((4, 3, 9, 9)).astype(np.float32)
    whole, cut = Kept(60), Kept(60)
    whole.update(x, 1)
    cut.update(x[:1], 1)
    cut.update(x[1:], 1)
    assert whole.values is not None
    assert cut.values is not None
    np.testing.assert_array_equal(whole.values, cut.values)
    assert whole.values.shape[:2] == (4, 3)
    assert whole.values.shape[2] < 81


class _Answers:
    """A model that gives what it is told to, batch after batch."""

    def __init__(self, *outputs: np.ndarray) -> None:
        self.outputs = outputs

    def run(self, batch: int) -> dict[str, np.ndarray]:
        return {"y": self.outputs[batch]}

    def encodings(self) -> dict[str, object]:
        return {}


@pytest.mark.parametrize(
    ("noise", "expected"),
    [
        ([1e-3, 2e-3, 4e-3], [4, 2, 1]),
        ([1e-3, 0, 1e-3], [1, 0, 1]),
        ([0, 1e-13, 1e-3], [0, 0, 1]),
        ([1e-3, 1e-3, 1e6], [1, 1, 1e-9]),
        ([0, 0, 0], [1, 1, 1]),
        ([1e-13, 0, 1e-12], [1, 1, 1]),
    ],
)
def test_a_sample_without_error_has_no_say(noise, expected) -> None:
    exact = np.ones((3, 1))
    trials = Trials(_Answers(exact + np.sqrt(noise)[:, None]), _Answers(exact), [0])
    counts = trials.by_sample()
    np.testing.assert_allclose(counts, np.array(expected) * 3 / np.sum(expected), rtol=1e-6, atol=1e-12)


def test_batches_that_hold_nothing() -> None:
    nothing, some = np.zeros((0, 4), np.float32), np.arange(8, dtype=np.float32).reshape(2, 4)
    for order in ((nothing, some), (some, nothing)):
        kept, bounds = Kept(60), SampleBounds()
        for batch in order:
            kept.update(batch, 1)
            bounds.update(batch, 1)
        assert kept.values is not None
        np.testing.assert_array_equal(kept.values[:, :, 0], some)
        np.testing.assert_array_equal(bounds.ranges(2), [[0, 3], [0, 7]])
        trials = Trials(_Answers(*(batch * 1.125 for batch in order)), _Answers(*order), [0, 1])
        assert trials.names == ["y"]
        assert trials.sqnr == pytest.approx(20 * math.log10(8))
        assert trials.by_sample().shape == (2,)


def test_an_input_of_zeros_carries_no_noise() -> None:
    node = SimpleNamespace(op="MatMul", input=lambda index: "ab"[index])
    read = {i: SimpleNamespace(channels=3, signal=np.zeros(3)) for i in range(2)}
    result = SimpleNamespace(channels=3, signal=np.full(3, 100.0))  # by a tiny number it would be infinite
    gain = local_gain(SimpleNamespace(weights={}), node, 0, read, result, lambda name: np.zeros(0))
    np.testing.assert_array_equal(gain.forward(np.zeros(3)), np.zeros(3))
    np.testing.assert_array_equal(gain.backward(np.ones(3)), np.zeros(3))


def test_rows_of_layers_count_by_sample_only_where_samples_are_the_same_ones() -> None:
    """Outputs with more rows than the data has samples, as (samples x tokens, classes), say nothing of samples."""
    network = chain(1, spread=0)
    sim = simulator(network, weights="int4")
    batch = network.batch(4)
    sim.calibrate([batch])
    exact, plan, encodings = sim.simulation.float_model(), sim.plan, dict(sim.backend_model.encodings())
    alike, longer = (
        measure_weights(exact, encodings, plan, [batch], counts) for counts in (np.ones(4), np.arange(8.0))
    )
    skewed = measure_weights(exact, encodings, plan, [batch], np.arange(4.0))
    np.testing.assert_array_equal(longer["fc", 1].power, alike["fc", 1].power)
    assert not np.array_equal(skewed["fc", 1].power, alike["fc", 1].power)


def test_noise_without_a_signal_is_not_taken_for_no_error() -> None:
    assert decibels(0, 1) == -100
    assert decibels(1e-30, 1) == -100
    assert decibels(1, 0) == math.inf


@pytest.fixture(scope="module")
def analyzed():
    network = chain(3, spread=0.3)
    sim = simulator(network, weights="int6")
    data = [network.batch(16, seed) for seed in range(2)]
    sim.calibrate(data)
    return sim, data, isobit.analyze(sim, data, samples=32, measure="off", checks=2)


def test_shares_are_those_of_the_runs_without(analyzed) -> None:
    """Sites that matter: their share, from two passes, and the error that is left when they alone are off."""
    _, _, found = analyzed
    assert sum(site.share for site in found.sites) == pytest.approx(1, abs=0.05)
    measured = [1 - 10 ** ((found.sqnr - site.without) / 10) for site in found.sites]
    shares = [site.share for site in found.sites]
    assert np.corrcoef(shares, measured)[0, 1] > 0.8
    assert all(sum(site.causes.values()) == pytest.approx(site.share) for site in found.sites)
    assert found.activations_alone > found.weights_alone + 10


def test_no_change_is_expected_to_gain_more_than_switching_off(analyzed) -> None:
    """Also where the outputs happen to be worse without a quantizer."""
    _, _, found = analyzed
    assert any(site.without < found.sqnr for site in found.sites)
    for advice in found.advice:
        site = found.site(advice.site)
        assert site is not None
        if advice.change != "bias":
            assert advice.predicted <= site.without - found.sqnr + 1e-6


def test_a_prediction_says_how_far_samples_differ_in_it(analyzed) -> None:
    """The standard error of the gains of single samples, with the quantizer switched off by hand."""
    sim, data, _ = analyzed
    found = isobit.analyze(sim, data, samples=32, checks=2)
    exact, model = copies(sim.simulation)

    def ratios(run):
        return np.concatenate([
            10 * np.log10(np.square(a).sum(1) / np.square(b - a).sum(1))
            for batch in data for a, b in [(exact.run(batch)["logits"], run(batch)["logits"])]
        ])  # fmt: skip

    together = ratios(model.run)
    advice = next(advice for advice in found.advice if advice.change != "bias")
    site = found.site(advice.site)
    model.enable(site.sites, on=False)
    gains = ratios(model.run) - together
    assert gains.mean() == pytest.approx(site.without - found.sqnr, abs=1e-3)
    assert advice.scatter == site.scatter == pytest.approx(gains.std(ddof=1) / np.sqrt(len(gains)), rel=1e-3)
    assert ("give or take" in advice.text) == (advice.scatter >= 0.25)
    assert found.to_dict()["advice"][0]["scatter"] == found.advice[0].scatter


@pytest.mark.parametrize("measure", [None, "off"])
def test_one_sample_says_nothing_of_others(measure) -> None:
    network = chain(2, spread=0.3)
    sim = simulator(network, weights="int6")
    sim.calibrate([network.batch(8)])
    found = isobit.analyze(sim, [network.batch(1)], measure=measure)
    assert any(site.without is not None for site in found.sites)
    assert all(site.scatter is None for site in found.sites)


def test_outputs_of_a_sample_count_as_one() -> None:
    """They err together: as samples of their own they would make what differs between samples look sure."""
    rng = np.random.default_rng(0)
    exact = rng.normal(size=(5, 3)).astype(np.float32)
    other = exact + rng.normal(size=(5, 3), scale=0.1).astype(np.float32)
    one = 10 * np.log10(np.square(exact).sum(1) / np.square(other - exact).sum(1))
    far = 10 * np.log10(np.square(exact).sum(1) / np.square(exact - 2 * other).sum(1))
    outputs = {"logits": exact, "double": 2 * exact, "far": exact}
    changed = {"logits": other, "double": 2 * other, "far": 2 * other}
    assert ratios_of_samples(outputs, changed, ["logits", "double"]) == pytest.approx(one, rel=1e-5)
    assert ratios_of_samples(outputs, changed, ["logits", "far"]) == pytest.approx((one + far) / 2, rel=1e-5)
    boxes = {"far": exact[:2]}, {"far": 2 * other[:2]}
    found = ratios_of_samples(outputs | boxes[0], changed | boxes[1], ["logits", "far"])
    assert found == pytest.approx([*one, *far[:2]], rel=1e-5)


def test_every_site_alone(analyzed) -> None:
    sim, data, found = analyzed
    on = isobit.analyze(sim, data, samples=32, measure="on", checks=0)
    assert all(site.alone is not None for site in on.sites)
    worst = on.sites[0]
    assert found.sqnr < worst.alone < found.sqnr - 10 * math.log10(worst.share) + 3


@pytest.mark.parametrize("seed", [1, 2, 4, 5])
def test_what_correcting_the_last_bias_gains_is_told_from_errors_with_their_signs(seed) -> None:
    """The shift of a weight is no loss where what comes in makes up for it, and what helps some samples harms some."""
    network = chain(seed, spread=0.3)
    sim = simulator(network, weights="int4")
    data = [network.batch(16)]
    sim.calibrate(data)
    measured = measure_errors(sim.simulation, *copies(sim.simulation), data)
    error = next(error for error in measured.errors if error.name == "fc.weight")
    option = advise_module._bias(measured.findings, error)
    assert option is not None
    noise = measured.trials.changed([Advice(error.name, "bias", "", "", 0.0, None, {}, option.bias)])
    assert option.gain == pytest.approx(advise_module.gain_of(measured.trials.noise, noise), abs=0.3)


@pytest.mark.parametrize(
    ("network", "weight"),
    [
        (lambda: chain(4, spread=0.3), "conv2.weight"),
        (lambda: chain(5, spread=0.3), "conv2.weight"),
        (NETWORKS["inverted_residual"], "depthwise.weight"),
        (NETWORKS["residual"], "block1_conv2.weight"),
    ],
)
def test_what_correcting_an_inner_bias_gains_is_told_by_what_the_shift_does_at_the_outputs(network, weight) -> None:
    """Behind an inner layer a shift adds up over positions, where energies alone tell a fraction of a decibel."""
    network = network()
    sim = simulator(network, weights="int4")
    data = [network.batch(16)]
    sim.calibrate(data)
    measured = measure_errors(sim.simulation, *copies(sim.simulation), data)
    error = next(error for error in measured.errors if error.name == weight)
    advice = advise_module.advise(measured.findings, error, 10**0.5 * measured.findings.total)
    assert advice is not None
    assert advice.change == "bias"
    gained = advise_module.gain_of(measured.trials.noise, measured.trials.changed([advice]))
    assert gained > 2
    assert advice.predicted == pytest.approx(gained, abs=0.6)


@pytest.mark.parametrize(
    ("moved", "left"), [([[1.0, 2.25, -np.inf]], 0.25**2 / 5), ([[1.0, 2.5, -np.inf]], 0.0), ([[1.0, 2.0]], 0.5**2 / 5)]
)
def test_a_shift_is_taken_from_the_errors_of_the_outputs(monkeypatch, moved, left) -> None:
    """By hand: the one error is 0.5, less the shift; masked places are left out, and other sizes tell nothing."""
    exact, outputs = np.array([[1.0, 2.0, -np.inf]]), np.array([[1.0, 2.0 + 0.5, -np.inf]])
    trials = Trials(_Answers(outputs), _Answers(exact), [0])
    monkeypatch.setattr(trials_module, "_with_biases", lambda model, shifts: _Answers(np.array(moved)))
    assert trials.expected_without({}) == pytest.approx(left, abs=1e-12)


def test_a_second_set_of_data_that_has_moved() -> None:
    """What the old range costs on the new data is what rounding the new data by both grids says."""
    network = chain(3)
    sim = simulator(network)
    data, moved = [network.batch(16)], [{name: 3 * values for name, values in network.batch(16, 1).items()}]
    sim.calibrate(data)
    same = isobit.analyze(sim, data, second=data, checks=0)
    assert same.data.drift is not None
    assert (same.data.drift.moved, same.data.drift.loss) == ((), 0.0)
    assert "no range has moved" in str(same)
    found = isobit.analyze(sim, data, second=moved, checks=0)
    assert found.data.drift is not None
    name, values = next(iter(moved[0].items()))
    item = next(item for item in found.data.drift.moved if item.tensor == name)
    assert item.second == (values.min(), values.max())
    own = simulator(network)
    own.calibrate(moved)
    noise = [np.square(s.encodings[name].fake_quantize(values) - values, dtype=np.float64).mean() for s in (sim, own)]
    assert item.cost == pytest.approx(10 * math.log10(noise[0] / noise[1]), abs=0.3)
    assert found.data.drift.loss > 3
    assert f"{name} goes from" in str(found)
    assert json.loads(found.to_json())["data"]["drift"]["moved"][0]["cost"] == found.data.drift.moved[0].cost


def test_words_and_json_say_the_same(analyzed, tmp_path) -> None:
    _, _, found = analyzed
    text = str(found)
    assert text.startswith(f"{found.sqnr:.1f} dB")
    assert found.advice[0].text in text
    assert found.advice[0].settings in text
    data = json.loads(found.to_json(tmp_path / "analysis.json"))
    assert data == json.loads((tmp_path / "analysis.json").read_text("utf-8"))
    assert data["sites"][0]["name"] == found.sites[0].name
    assert data["advice"][0]["predicted"] == pytest.approx(found.advice[0].predicted)
    assert [step["tensor"] for step in data["depth"]] == [step.tensor for step in found.depth]


def test_the_report_is_one_file_that_names_cannot_break(analyzed, tmp_path) -> None:
    """No address of the network, all data as JSON inside, and no text of the user's that ends its element."""
    _, _, found = analyzed
    nasty = replace(found, notes=("</script><img src=x onerror=alert(1)> & \u2028",), scores={"float": math.nan})
    nasty.to_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert len(page) < 5_000_000
    assert page.count("</script>") == 2
    inside = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert inside is not None
    own = page.replace(inside[1], "")
    assert not re.findall(r"""(?:src|href)=["'](?!data:,)|https?://(?!www\.w3\.org/2000/svg)|@import|url\(""", own)
    data = json.loads(inside[1])
    parts = {section["kind"]: section["content"] for section in data["sections"]}
    assert ["not finite", "score, float"] in parts["cards"]["items"]
    assert "</script>" in parts["notes"]["lines"][-1]
    assert parts["sites"]["sites"][0]["share"] == nasty.to_dict()["sites"][0]["share"]
    assert set(parts) <= set(re.findall(r"^  (\w+)\(content, place\)", own, re.MULTILINE)) | {"cards"}
    site = next(site for site in parts["sites"]["sites"] if site["kind"] == "weight")
    assert sum(site["histogram"]["counts"]) > 0
    assert site["histogram"]["low"] <= site["grid"][0] + 1e-4


def test_a_model_without_error_has_nothing_to_advise() -> None:
    network = chain(0, spread=0)
    sim = simulator(network, activations="float16", weights="float16")
    batch = {name: np.zeros_like(values) for name, values in network.batch(4).items()}
    sim.calibrate([batch])
    found = isobit.analyze(sim, [batch])
    assert not math.isnan(found.sqnr)
    json.loads(found.to_json())


def test_the_data_is_judged() -> None:
    """Samples that are there twice, and how much a range depends on one part of the data."""
    network = chain(2, spread=0)
    data = [network.batch(8, seed) for seed in range(8)]
    sim = simulator(network)
    sim.calibrate(data, "mse")
    plain = isobit.analyze(sim, data, checks=0).data
    assert (plain.samples, plain.duplicates, plain.range_setters) == (64, (), ())
    assert plain.more is not None
    assert plain.unstable["x"] < 0.5
    data[3] = {name: np.concatenate([data[0][name][2:3], values[1:]]) for name, values in data[3].items()}
    data[6] = {name: values * 8 for name, values in data[6].items()}
    sim.calibrate(data, "minmax")
    found = isobit.analyze(sim, data, checks=0)
    assert found.data.duplicates == ((2, 24),)
    assert found.data.unstable["x"] > 3 > plain.unstable["x"]
    assert found.data.more is not None
    assert found.data.more > plain.more
    assert "samples are there twice, the first ones are 2 and 24" in found.text()
    assert found.data.parts == 4
    assert "data: 16 more samples would change" in found.text()


def test_one_loud_part_is_told_as_what_it_costs() -> None:
    """Values of 16 bits that are cut off have noise a thousand times that of rounding: in one sample, not in all."""
    network = chain(2, spread=0)
    data = [network.batch(8, seed) for seed in range(4)]
    data[0] = {name: np.array(values) for name, values in data[0].items()}
    for values in data[0].values():
        values[0] *= 1.3 * max(np.abs(batch["x"]).max() for batch in data) / np.abs(values[0]).max()
    sim = simulator(network, overrides={"x": "uint16"})
    sim.calibrate(data, "minmax")
    found = isobit.analyze(sim, data, checks=0).data
    ratios = []
    for left in range(4):
        sim.calibrate([batch for number, batch in enumerate(data) if number != left], "minmax")
        ratios.append(isobit.analyze(sim, data, checks=0).sqnr)
    sim.calibrate(data, "minmax")
    loss = isobit.analyze(sim, data, checks=0).sqnr - float(np.mean(ratios))
    assert found.more is not None
    assert loss - 0.1 < found.more < max(loss, 0.0) + 2
    assert found.unstable["x"] > 10


def test_what_is_said_of_parts_holds_for_two_batches_and_for_one_sample() -> None:
    network = chain(2, spread=0)
    sim = simulator(network)
    data = [network.batch(8, 0), {name: values * 8 for name, values in network.batch(8, 1).items()}]
    sim.calibrate(data, "minmax")
    found = isobit.analyze(sim, data, checks=0)
    assert found.data.parts == 2
    assert "data: 8 more samples would change" in found.text()
    assert "where one of 2 parts of the data is left out" in found.text()
    one = isobit.analyze(sim, [network.batch(1, 0)], checks=0, samples=1)
    assert one.data.more is None
    assert one.site("gap").channels == 8
    assert one.site("gap").dead == 0


def test_bad_input() -> None:
    network = chain(0, spread=0)
    sim = simulator(network)
    batch = network.batch(4)
    with pytest.raises(ModelError, match="not calibrated"):
        isobit.analyze(sim, [batch])
    sim.calibrate([batch])
    with pytest.raises(FormatError, match="'on', 'off' or None"):
        isobit.analyze(sim, [batch], measure="both")
    with pytest.raises(DataError, match="at least 1 sample"):
        isobit.analyze(sim, [batch], samples=0)


def test_a_correction_goes_with_the_rounding_that_it_makes_up_for() -> None:
    """What the outputs are without a weight's quantizer, or with others alone, has no correction for its rounding."""
    network = chain(0, spread=0)
    sim = simulator(network, weights="int3")
    data = [network.batch(8, seed) for seed in range(2)]
    isobit.quantize(sim, data, techniques=[isobit.techniques.CorrectBias()], method="minmax", progress=False)
    exact, simulated = copies(sim.simulation)
    trials = Trials(simulated, exact, data)
    weights = [site for site in trials.encodings if str(site).endswith(".weight")]
    bare = simulator(network, weights="int3")
    bare.calibrate(data)
    rest = [site for site in trials.encodings if site not in weights]
    bare_trials = Trials(bare.backend_model, exact, data)
    assert trials.without(weights) == pytest.approx(bare_trials.without(weights), rel=1e-3)
    assert trials.alone(rest) == trials.without(weights)
    assert trials.without(rest) < bare_trials.without(rest)  # the weights' own corrections stay
    assert trials.noise == trials.noise_of(trials._run(simulated))  # all is as it was
