"""Batches of one sample are run together where that changes no bit, and alone where it would."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import isobit
from isobit.data import Batch
from isobit.data.joined import TOGETHER
from isobit.quantsim.judging.judge import Judge, decibels_of_samples
from isobit.quantsim.passes.run_here import JOINED
from isobit_onnx.run.observe import ObservingSessions

BODIES = {
    "convolutions": "c = Conv (x, w)\n r = Relu (c)\n d = Conv (r, v)\n y = Add (d, s)",
    # The state carries its samples on axis 1.
    "state": "c = Conv (x, w)\n r = Relu (c)\n t = Transpose <perm = [1, 0, 2]> (z)\n d = Conv (r, v)\n"
    " m = Mul (d, t)\n y = Add (m, s)",
    "a mean over the batch": "c = Conv (x, w)\n m = ReduceMean <axes = [0]> (c)\n n = Sub (c, m)\n y = Conv (n, v)",
    "a share of the batch": "c = Conv (x, w)\n n = Softmax <axis = 0> (c)\n y = Conv (n, v)",
    "a size of one sample": "c = Conv (x, w)\n r = Reshape (c, one)\n y = Conv (r, v)",
    # What is chosen, or how long it is, is the same in all of the first samples.
    "chosen samples": "c = Conv (x, w)\n k = Cast <to = 9> (n)\n f = Compress <axis = 0> (c, k)\n y = Conv (f, v)",
    "places of values": "c = Conv (x, w)\n k = NonZero (n)\n t = Transpose (k)\n f = GatherND (c, t)\n y = Conv (f, v)",
    "the largest length": "c = Conv (x, w)\n m = ReduceMax <keepdims = 1> (n)\n f = Slice (c, zero, m, two)\n"
    " y = Conv (f, v)",
}
NUMBERS = {"chosen samples": (1, 0), "places of values": (1, 0), "the largest length": (10, 7)}
BATCH = 3 * TOGETHER + 5


def model(name: str, folder: Path) -> Path:
    """A small file with an open batch: `x` (N, 3, 12), and what is read: a state `z` (4, N, 8), `n` (N,), `s`."""
    body = BODIES[name]
    state = ", float[4,N,8] z" if "(z)" in body else ""
    side = ", float[1] s" if ", s)" in body else ""
    number = ", int64[N] n" if name in NUMBERS else ""
    graph = f"g (float[N,3,12] x{state}{number}{side}) => (float[N,4,8] y) {{\n {body}\n }}"
    made = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {graph}')
    rng = np.random.default_rng(0)
    for weight, shape in (("w", (5, 3, 3)), ("v", (4, 5, 3))):
        made.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), weight))
    for constant, value in (("one", [1, 5, 10]), ("zero", [0]), ("two", [2])):
        made.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), constant))
    path = folder / "model.onnx"
    onnx.save(made, path)
    return path


def stream(name: str, count: int = BATCH) -> list[Batch]:
    """Batches of one sample each, each of another size, so that moving averages depend on where batches end.

    The number is one value for the first of them, and then now and again another.
    """
    rng = np.random.default_rng(1)
    shapes = {"x": (1, 3, 12), "z": (4, 1, 8)}
    body, numbers = BODIES[name], NUMBERS.get(name, (0, 0))
    read = ["x", *(["z"] if "(z)" in body else [])]
    return [
        {
            **{name: (rng.normal(size=shapes[name]) * rng.uniform(0.1, 3)).astype(np.float32) for name in read},
            **({"s": np.ones(1, np.float32)} if ", s)" in body else {}),
            **({"n": np.array([numbers[i > TOGETHER + 4 and i % 3 == 0]])} if name in NUMBERS else {}),
        }
        for i in range(count)
    ]


@pytest.mark.parametrize(("name", "joins"), [(name, name in ("convolutions", "state")) for name in BODIES])
def test_statistics_are_those_of_the_given_batches(
    name: str, joins: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model(name, tmp_path)
    data, runs = stream(name), list[int]()
    observe = ObservingSessions.observe
    monkeypatch.setattr(ObservingSessions, "observe", lambda *args: runs.append(1) or observe(*args))
    sim, alone = isobit.QuantSim(path), isobit.QuantSim(path)
    sim.calibrate(data)
    found = len(runs)
    alone.calibrate(data, resume=tmp_path / "seen.npz")  # what may be gone on with later runs each batch alone
    assert len(runs) - found == BATCH
    assert (found < BATCH) == joins
    assert (JOINED in sim.simulation.notes) == joins
    assert dict(sim.statistics.items()) == dict(alone.statistics.items())
    for site, histogram in sim.statistics.items():
        for what, values in histogram.arrays().items():  # the bounds of each batch, which equality leaves out
            np.testing.assert_array_equal(values, alone.statistics[site].arrays()[what], what)
    assert sim.encodings == alone.encodings


@pytest.mark.parametrize(("name", "joins"), [(name, name in ("convolutions", "state")) for name in BODIES])
def test_the_judge_measures_each_sample(name: str, joins: bool, tmp_path: Path) -> None:
    path = model(name, tmp_path)
    data = stream(name, TOGETHER + 3)
    sim = isobit.QuantSim(path)
    sim.calibrate(data)
    judge = Judge.of(sim.simulation.float_model(), data)
    assert (judge._joined is not None) == joins
    expected = [decibels_of_samples(sim.run_float(batch), sim.run(batch)) for batch in data]
    exact = Judge.of(isobit.QuantSim(path).backend_model, data)
    np.testing.assert_allclose(exact.ratios(sim.backend_model), expected, rtol=0, atol=1e-9)


def test_other_data_runs_as_it_is_given(tmp_path: Path) -> None:
    """A side input that changes, or two samples in a batch: nothing is joined across that."""
    path = model("convolutions", tmp_path)
    data = stream("convolutions")
    for change in ({"s": np.zeros(1, np.float32)}, {"x": np.ones((2, 3, 12), np.float32)}):
        changed = [*data[: TOGETHER + 2], {**data[0], **change}, *data[TOGETHER + 3 :]]
        sim, alone = isobit.QuantSim(path), isobit.QuantSim(path)
        sim.calibrate(changed)
        alone.calibrate(changed, resume=tmp_path / f"{next(iter(change))}.npz")
        assert sim.encodings == alone.encodings


SIZE_DECIDES = """
g (float[N,3,12] x) => (float[N,5,10] y) {
 c = Conv (x, w)
 s = Shape (x)
 n = Gather (s, zero)
 is_one = Equal (n, one)
 y = If (is_one) <then_branch = then_graph () => (float[N,5,10] t) { t = Relu (c) },
                  else_branch = else_graph () => (float[N,5,10] e) { e = Tanh (c) }>
}
"""


def test_a_branch_for_one_sample_is_not_tried_with_several() -> None:
    made = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {SIZE_DECIDES}')
    weight = np.random.default_rng(0).normal(size=(5, 3, 3)).astype(np.float32)
    constants = {"w": weight, "zero": np.int64(0), "one": np.int64(1)}
    made.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    data = stream("a mean over the batch")
    sim = isobit.quantize(made, data)
    assert [node.op for node in sim.graph.nodes] == ["Conv", "Relu"]
    assert JOINED not in sim.simulation.notes
