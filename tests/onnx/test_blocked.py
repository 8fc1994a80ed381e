"""Sessions that keep quantizers and reductions in onnxruntime's blocked layout give the bits of plain ones."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

import isobit
from isobit.encodings import Encoding, QuantSpec
from isobit.graph import Tensor
from isobit.statistics import Histogram, MinMax, Request
from isobit.testing.networks import Network, NetworkBuilder
from isobit_onnx.backend import OnnxBackend
from isobit_onnx.model import OnnxModel
from isobit_onnx.reference_networks import build_onnx
from isobit_onnx.run import blocked_layout, observe, session
from isobit_onnx.run.blocked_layout import DOMAIN, block_size, keep_blocked, optimise
from isobit_onnx.run.session import RUN_FAILURES, Session

pytestmark = pytest.mark.skipif(block_size() == 0, reason="onnxruntime has no blocked layout on this machine")


def network() -> Network:
    """Convolutions of full and of filled-up blocks, with a residual, a pool, ReLU6 and a large output."""
    b = NetworkBuilder("blocks")
    x = b.input("image", 3, 48, 48)
    x = b.op("Relu", "relu", b.conv("stem", x, 16, 3))
    y = b.relu6("wide_relu", b.conv("wide", x, 48, 1))
    y = b.conv("back", y, 16, 3)
    x = b.op("Add", "add", x, y)
    x = b.op(
        "MaxPool", "pool", x, kernel_shape=(2, 2), strides=(2, 2), dilations=(1, 1), pads=(0, 0, 0, 0), ceil_mode=0
    )
    odd = b.op("Sigmoid", "gate", b.conv("odd", x, 20, 3))
    b.output("features", b.conv("last", odd, 18, 1))
    b.output("also", odd)
    return b.build()


NAMES = ("image", "relu", "wide_relu", "back", "add", "odd", "gate")


def quantized(formats: list[str]) -> OnnxModel:
    model = OnnxBackend().open(build_onnx(network()))
    encodings = {}
    for number, name in enumerate(NAMES):
        spec = QuantSpec.parse(formats[number % len(formats)])
        zero = 0 if spec.symmetric else (spec.q_min + spec.q_max) // 2
        encodings[Tensor(name)] = Encoding(spec, np.float32(0.037 * 255 / (spec.q_max - spec.q_min)), np.int32(zero))
    model.set_quantizers(encodings)
    return model


@pytest.mark.parametrize(
    "formats", [["uint8"], ["int8"], ["int16"], ["uint5", "int12", "uint8"], ["uint8", "bfloat16"]]
)
def test_simulated_outputs_are_the_same_bits(formats):
    simulator = quantized(formats).simulator()
    plain, blocked = Session(simulator, blocked_after=100), Session(simulator, blocked_after=0)
    blocked.run(network().batch(2, seed=2))
    assert blocked.is_blocked
    assert not plain.is_blocked
    for size in (1, 3):
        batch = network().batch(size, seed=size)
        expected, outputs = plain.run(batch), blocked.run(batch)
        assert list(expected) == list(outputs)
        for name in expected:
            np.testing.assert_array_equal(outputs[name].view(np.uint32), expected[name].view(np.uint32), err_msg=name)


def test_no_tensor_is_reordered_around_a_quantizer(tmp_path):
    """Otherwise nothing above is tested, and the runtime's optimiser has changed."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    path = optimise(quantized(["uint8"]).native.SerializeToString(), options, tmp_path)
    model = onnx.load(path, load_external_data=False)
    before = [node.op_type for node in model.graph.node if node.domain == DOMAIN]
    assert keep_blocked(model)
    after = [node.op_type for node in model.graph.node if node.domain == DOMAIN]
    assert before.count("ReorderInput") >= 4
    assert after.count("ReorderInput") <= 1  # behind the pool, which runs plain
    assert after.count("ReorderOutput") <= 4


@pytest.mark.parametrize(("shape", "is_moved"), [([], True), (None, False)])
def test_an_input_of_unknown_rank_is_not_taken_for_a_scalar(shape, is_moved):
    """Equal factors of all channels hide it in the first run, whose bits are compared."""
    rng, make = np.random.default_rng(0), onnx.helper.make_node
    kernel = onnx.numpy_helper.from_array(rng.normal(size=(16, 16, 3, 3)).astype(np.float32), "w")
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            make("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
            make("Mul", ["c", "factor"], ["m"], "mul"),
            make("Conv", ["m", "w"], ["y"], "last", pads=[1, 1, 1, 1]),
        ],
        "scaled",
        [value("x", 1, ["n", 16, 8, 8]), value("factor", 1, shape)],
        [value("y", 1, ["n", 16, 8, 8])],
        [kernel],
    )
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    opened = Session(ir.from_proto(proto), any_order=["z"], blocked_after=0)
    image = rng.normal(size=(2, 16, 8, 8)).astype(np.float32)
    opened.run({"x": image, "factor": np.full(() if is_moved else (1, 16, 1, 1), 2, np.float32)})
    assert opened.is_blocked == is_moved
    factors = rng.normal(size=() if is_moved else (1, 16, 1, 1)).astype(np.float32)
    feeds = {"x": image, "factor": factors}
    expected = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, feeds)[0]
    np.testing.assert_array_equal(opened.run(feeds)["y"], expected)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """However long runs take, the layout changes after the first."""
    monkeypatch.setattr(session, "BLOCKED_COST", 0.0)


@pytest.mark.parametrize(("cost", "is_blocked"), [(0.0, True), (1e9, False)])
def test_the_layout_changes_when_runs_have_taken_as_long(cost, is_blocked, monkeypatch):
    monkeypatch.setattr(session, "BLOCKED_COST", cost)
    opened = Session(quantized(["uint8"]).simulator())
    for _ in range(3):
        opened.run(network().batch(2))
    assert opened.is_blocked == is_blocked


def test_a_session_changes_its_layout_in_the_middle_of_the_data(monkeypatch):
    model = quantized(["uint8"])
    results = []
    monkeypatch.setattr(session, "keep_blocked", lambda *args: results.append(keep_blocked(*args)) or results[-1])
    batch = network().batch(2)
    outputs = [model.run(batch)["features"] for _ in range(7)]
    assert results == [True]
    assert [opened.is_blocked for opened, _ in model._sessions.values()] == [True]
    for other in outputs[1:]:
        np.testing.assert_array_equal(other, outputs[0])


@pytest.mark.parametrize("stage", ["before", "after"])
def test_statistics_are_the_same(stage, monkeypatch):
    """Counts, bounds and their order, for tensors that are sampled and tensors that are counted whole."""
    assert (Histogram().limit or 0) < 48 * 48 * 16

    opened: list[Session] = []
    layouts: set[bool] = set()

    class Recorded(Session):
        def __init__(self, *args, **settings):
            super().__init__(*args, **settings)
            opened.append(self)

    monkeypatch.setattr(observe, "Session", Recorded)

    def observed():
        model = quantized(["uint8"])
        histograms = {name: Histogram() for name in NAMES} | {name: MinMax() for name in ("relu@", "gate@")}
        requests = [Request(Tensor(name.rstrip("@")), h, stage) for name, h in histograms.items()]
        model.observe([network().batch(size, seed=size) for size in (2, 3)], requests)
        layouts.update(session.is_blocked for session in opened)
        return {name: histogram.arrays() for name, histogram in histograms.items()}

    blocked = observed()
    assert layouts == {True}
    opened.clear()
    monkeypatch.setattr(session, "block_size", lambda: 0)
    plain = observed()
    assert layouts == {True, False}
    for name, arrays in plain.items():
        for key, array in arrays.items():
            np.testing.assert_array_equal(blocked[name][key], array, err_msg=f"{name} {key}")


def assert_runs_plain(session: Session, simulator: ir.Model) -> None:
    """Both runs give the outputs of a plain session, and the session is one by then."""
    plain = Session(simulator, blocked_after=100)
    for size in (1, 3):
        batch = network().batch(size, seed=size)
        expected = plain.run(batch)
        for name, output in session.run(batch).items():
            np.testing.assert_array_equal(output.view(np.uint32), expected[name].view(np.uint32), err_msg=name)
    assert not session.is_blocked


def without_names(model: ir.Model) -> ir.Model:
    for node in model.graph:
        node.name = ""
    return model


def with_names_taken(model: ir.Model) -> ir.Model:
    """Nodes and values have the names that moved ones would get."""
    values = ir.convenience.create_value_mapping(model.graph)
    stem = "relu_quantized"
    for name, value in zip([f"{stem}__blocked", f"{stem}__reorder"], (values["wide"], values["back"]), strict=True):
        value.name = name
    model.graph[0].name, model.graph[1].name = f"{stem}_node__blocked", f"{stem}_node__reorder"
    return model


@pytest.mark.parametrize("change", [without_names, with_names_taken])
def test_new_names_are_unique(change) -> None:
    """A file's nodes may have no names, and its names may be those that moved nodes would get."""
    simulator = change(quantized(["uint8"]).simulator())
    blocked, plain = Session(simulator, blocked_after=0), Session(simulator, blocked_after=100)
    for size in (1, 3):
        batch = network().batch(size, seed=size)
        expected = plain.run(batch)
        for name, output in blocked.run(batch).items():
            np.testing.assert_array_equal(output.view(np.uint32), expected[name].view(np.uint32), err_msg=name)
    assert blocked.is_blocked


def test_a_file_of_nodes_without_names_is_calibrated_and_simulated(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "BLOCKED_COST", 0.0)
    proto = build_onnx(network())
    for node in proto.graph.node:
        node.name = ""
    onnx.save(proto, tmp_path / "model.onnx")
    sim = isobit.quantize(tmp_path / "model.onnx", [network().batch(2, seed=seed) for seed in range(2)])
    batch = network().batch(2)
    outputs = [sim.run(batch) for _ in range(7)]
    assert [kept.is_blocked for kept, _ in sim.backend_model.inner._sessions.values()] == [True]
    for other in outputs[1:]:
        np.testing.assert_array_equal(other["features"], outputs[0]["features"])


def fails(model: onnx.ModelProto, any_order=()) -> bool:
    raise ValueError("a fault of the blocked layout")


def names_nodes_alike(model: onnx.ModelProto, any_order=()) -> bool:
    keep_blocked(model, any_order)
    for node in model.graph.node:
        node.name = "alike"
    return True


def computes_something_else(model: onnx.ModelProto, any_order=()) -> bool:
    keep_blocked(model, any_order)
    (scale,) = [tensor for tensor in model.graph.initializer if tensor.name == "also_scale"]
    scale.CopyFrom(onnx.numpy_helper.from_array(np.float32(0.0371), scale.name))
    return True


@pytest.mark.parametrize("faulty", [fails, names_nodes_alike, computes_something_else])
def test_a_fault_of_the_blocked_layout_is_no_fault_of_the_session(faulty, monkeypatch) -> None:
    monkeypatch.setattr(session, "keep_blocked", faulty)
    simulator = quantized(["uint8"]).simulator()
    assert_runs_plain(Session(simulator, blocked_after=0), simulator)


@pytest.mark.parametrize("faulty", [fails, names_nodes_alike])
def test_observation_survives_a_fault_of_the_blocked_layout(faulty, monkeypatch) -> None:
    histograms = {}
    for keep in (keep_blocked, faulty):
        monkeypatch.setattr(session, "keep_blocked", keep)
        histograms[keep] = {name: Histogram() for name in NAMES}
        requests = [Request(Tensor(name), histogram) for name, histogram in histograms[keep].items()]
        quantized(["uint8"]).observe([network().batch(2, seed=seed) for seed in range(2)], requests)
    assert histograms[keep_blocked] == histograms[faulty]


def test_a_blocked_session_that_fails_later_gives_way_to_the_plain_one() -> None:
    class Failing:
        def run(self, *args: object) -> None:
            raise RuntimeError("a kernel failed")

    simulator = quantized(["uint8"]).simulator()
    blocked = Session(simulator, blocked_after=0)
    blocked.run(network().batch(2))
    assert blocked.is_blocked
    with pytest.raises(RUN_FAILURES, match="invalid dimensions"):
        blocked.run({"image": np.zeros((1, 2, 48, 48), np.float32)})
    assert blocked.is_blocked, "the batch was at fault"
    blocked._session = Failing()
    assert_runs_plain(blocked, simulator)


def test_a_runtime_that_does_not_write_its_models_has_no_blocked_layout(monkeypatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError("no such option")

    block_size.cache_clear()
    monkeypatch.setattr(blocked_layout, "optimise", refuse)
    try:
        assert block_size() == 0
        model = quantized(["uint8"])
        model.run(network().batch(1))
    finally:
        block_size.cache_clear()
