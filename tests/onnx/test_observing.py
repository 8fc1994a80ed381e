"""Observation inside the graph: what is not computed there must be known all the same."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import pytest
import small_models as small
from onnx import TensorProto, helper, numpy_helper

from isobit.encodings import QuantSpec, encode_range
from isobit.graph import Tensor
from isobit.statistics import Histogram, Request
from isobit.statistics.channel_moments import ChannelMoments
from isobit.testing.collecting import Collect
from isobit.testing.networks import NetworkBuilder
from isobit_onnx.backend import OnnxBackend
from isobit_onnx.reference_networks import build_onnx
from isobit_onnx.run.observe import ObservingSession
from isobit_onnx.run.session import Session


@pytest.fixture
def openings(monkeypatch):
    """How each session was opened."""
    settings = []
    opened = ObservingSession._open
    monkeypatch.setattr(
        ObservingSession, "_open", lambda self, batch, **how: (settings.append(how), opened(self, batch, **how))
    )
    return settings


@pytest.mark.parametrize("op", ["relu", "relu6"])
@pytest.mark.parametrize("shift", [(0, 0, 0), (9, 0, 0), (0, 9, -9), (9, 9, 9)])
def test_the_minimum_behind_a_relu_is_exact_with_and_without_zeros(op, shift, openings):
    b = NetworkBuilder("rectified")
    x = b.input("image", 8, 40, 40)
    b.output("y", b.relu6("relu", x) if op == "relu6" else b.op("Relu", "relu", x))
    model = OnnxBackend().open(build_onnx(b.build()))
    assert (Histogram().limit or 0) < 8 * 40 * 40, "only a sample of the values leaves the graph"
    rng = np.random.default_rng(5)
    batches = [{"image": (rng.standard_normal((2, 8, 40, 40)) / 3 + by).astype(np.float32)} for by in shift]
    histogram = Histogram()
    model.observe(batches, [Request(Tensor("relu"), histogram)])
    ends = [np.clip(batch["image"], 0, 6 if op == "relu6" else None) for batch in batches]
    np.testing.assert_array_equal(histogram.batch_bounds.arrays()["batches"][:, 0], [end.min() for end in ends])
    np.testing.assert_array_equal(histogram.batch_bounds.arrays()["batches"][:, 1], [end.max() for end in ends])
    assert histogram.minimum == min(end.min() for end in ends)
    assert len(openings) == 1 + (9 in shift), "one session, and a second one from where zeros are missing"


def _sequences() -> onnx.ModelProto:
    """(batch, length, 24) in, with a score for each pair of positions; images of any size beside it."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", 24])
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, "height", "width"])
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((24, 24)).astype(np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], "linear"),
        helper.make_node("Transpose", ["y"], ["turned"], "turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["y", "turned"], ["scores"], "pairs"),
        helper.make_node("Relu", ["image"], ["bright"], "relu"),
    ]
    outputs = [
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", "length", "length"]),
        helper.make_tensor_value_info("bright", TensorProto.FLOAT, ["batch", 3, "height", "width"]),
    ]
    graph = helper.make_graph(nodes, "sequences", [x, image], outputs, [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_one_session_observes_batches_of_all_shapes(openings):
    """What it samples is what `Histogram.update` takes of the whole tensor, above and below the limit of a sample."""
    model = OnnxBackend().open(_sequences())
    rng = np.random.default_rng(1)
    batches = [
        {
            "x": rng.standard_normal((size, length, 24)).astype(np.float32),
            "image": (rng.standard_normal((size, 3, length, width)) + shift).astype(np.float32),
        }
        for size, length, width, shift in [(2, 3, 5, 0), (1, 50, 40, 9), (3, 17, 90, 0), (2, 97, 31, 0)]
    ]
    limit = 700
    tensors = {tensor: info.channel_axis for tensor, info in model.graph.tensors.items() if tensor != "turn"}
    histograms = {tensor: Histogram(limit) for tensor in tensors}
    model.observe(batches, [Request(Tensor(tensor), histogram) for tensor, histogram in histograms.items()])
    assert len(openings) == 2, "one session, and a second one from where zeros are missing behind the Relu"
    of_whole_tensors = {tensor: Histogram(limit) for tensor in tensors}
    for batch in batches:
        whole = {tensor: Collect() for tensor in tensors}
        model.observe([batch], [Request(Tensor(tensor), observer) for tensor, observer in whole.items()])
        for tensor, axis in tensors.items():
            of_whole_tensors[tensor].update(whole[tensor].values, axis)
    assert histograms == of_whole_tensors
    assert any(histogram.counted < histogram.elements for histogram in histograms.values())


LIMIT = 64


def _promising(*shapes: list[str | int], to: list[str | int], op: str = "Sigmoid", constants=()) -> onnx.ModelProto:
    """One operation whose inputs and output have these declared shapes."""
    names = ["x", "z"][: len(shapes)]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in zip(names, shapes, strict=True)
    ]
    tensors = [numpy_helper.from_array(np.array([value]), f"c{i}") for i, value in enumerate(constants)]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, to)
    node = helper.make_node(op, [*names, *(tensor.name for tensor in tensors)], ["y"], "node")
    graph = helper.make_graph([node], "promising", inputs, [output], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize(
    ("model", "shapes"),
    [
        (_promising(["n", 3, "n", "n"], to=["n", 3, "n", "n"]), [[(2, 3, 8, 12)], [(4, 3, 17, 5)]]),
        (_promising(["b", "s", 16], ["b", "s", 16], to=["b", None, 16], op="Add"), [[(2, 5, 16), (2, 1, 16)]]),
        (_promising(["b", "s", 16], ["b", "s", 16], to=["b", None, 16], op="Add"), [[(2, 1, 16), (2, 7, 16)]] * 2),
        (
            _promising(["b", "s", 16], to=["b", "s", 16], op="Slice", constants=(1, 99, 1)),
            [[(2, 5, 16)], [(2, 30, 16)]],
        ),
        (_promising(["", "", 16], to=["", "", 16]), [[(2, 5, 16)], [(3, 30, 16)]]),
        (_promising(["b", "s", 16], to=["b", "s", 16]), [[(2, 5, 16)], [(3, 30, 16)]]),
    ],
    ids=["one name thrice", "two inputs", "broadcast", "output named by hand", "empty names", "kept"],
)
def test_sizes_are_those_of_the_batch_whatever_names_promise(model, shapes):
    """onnxruntime does not mind names that are not true; samples and counts are those of the tensors all the same."""
    opened = OnnxBackend().open(model)
    rng = np.random.default_rng(3)
    batches = [
        {
            name: rng.standard_normal(shape).astype(np.float32)
            for name, shape in zip("xz", shapes_of_batch, strict=False)
        }
        for shapes_of_batch in shapes
    ]
    output = opened.graph.outputs["y"]
    observed, expected = Histogram(LIMIT), Histogram(LIMIT)
    opened.observe(batches, [Request(Tensor(output), observed)])
    for batch in batches:
        expected.update(opened.run(batch)["y"], opened.graph.tensors[output].channel_axis)
    assert observed.elements == sum(opened.run(batch)["y"].size for batch in batches)
    assert observed == expected


def test_names_that_a_reduction_would_have_may_be_taken():
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "m", 3]) for name in ("x", "last"))
    names = ["x", "x__ReduceMax", "x__sample_64", "x__size", "x__ReduceMin", "last"]
    nodes = [helper.make_node("Neg", [a], [b], f"node{i}") for i, (a, b) in enumerate(pairwise(names))]
    graph = helper.make_graph(nodes, "taken", [x], [y])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    model = OnnxBackend().open(proto)
    data = np.random.default_rng(2).standard_normal((4, 50, 3)).astype(np.float32)
    histograms = {tensor: Histogram(LIMIT) for tensor in model.graph.tensors}
    model.observe([{"x": data}], [Request(Tensor(tensor), histogram) for tensor, histogram in histograms.items()])
    assert len(histograms) == len(names)
    for i, histogram in enumerate(histograms.values()):
        values = (-1) ** i * data
        assert (histogram.minimum, histogram.maximum) == (values.min(), values.max())


def test_what_nobody_looks_at_is_not_computed():
    """Whole tensors of the simulator's first layer: neither outputs nor later nodes are in the session."""
    model = OnnxBackend().open(_sequences())
    spec = QuantSpec.parse("uint8 per-tensor")
    model.set_quantizers({Tensor(name): encode_range(-3.0, 3.0, spec) for name in ("linear", "pairs", "x", "relu")})
    rng = np.random.default_rng(1)
    batch = {
        "x": rng.standard_normal((2, 7, 24)).astype(np.float32),
        "image": rng.standard_normal((2, 3, 4, 5)).astype(np.float32),
    }
    sessions = []
    observe = ObservingSession.observe
    before, after = Collect(), Collect()
    requests = [Request(Tensor("linear"), before), Request(Tensor("linear"), after, "after")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ObservingSession, "observe", lambda self, *args: (sessions.append(self), observe(self, *args))[1])
        model.observe([batch], requests)
    (session,) = sessions
    assert len(session._session.output_names) == 2
    assert not {"bright", "scores"} & set(session._session.output_names)
    grid = encode_range(-3.0, 3.0, spec)
    np.testing.assert_allclose(
        before.values, grid.fake_quantize(batch["x"]) @ model.weight("w").T, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(after.values, grid.fake_quantize(before.values))


def test_tensors_are_read_no_oftener_than_needed(monkeypatch):
    """One that is counted whole leaves as it is, and the ends of one whose channels are reduced are those of them."""
    b = NetworkBuilder("rectified")
    b.output("y", b.op("Relu", "relu", b.conv("conv", b.input("image", 3, 6, 7), 5)))
    network, graphs = b.build(), []
    model = OnnxBackend().open(build_onnx(network))
    monkeypatch.setattr(
        "isobit_onnx.run.observe.Session",
        lambda model, *args, **settings: (graphs.append(model.graph), Session(model, *args, **settings))[1],
    )
    batch, conv = network.batch(3), Tensor("conv")
    counted, moments, whole = Histogram(), ChannelMoments(), Collect()
    model.observe([batch], [Request(conv, counted), Request(conv, moments)])
    (graph,) = graphs
    reading = [node.op_type for node in graph if "conv" in {value.name for value in node.inputs if value is not None}]
    assert sorted(reading) == ["Mul", "ReduceMax", "ReduceMean", "ReduceMin", "Relu", "Size"]
    model.observe([batch], [Request(conv, whole)])
    assert (counted.minimum, counted.maximum) == (whole.values.min(), whole.values.max())
    assert counted.counted == whole.values.size
    np.testing.assert_array_equal(moments.minimum, whole.values.min(axis=(0, 2, 3)))


def test_what_is_counted_whole_keeps_its_order(monkeypatch):
    """A slice in the model is no sample: in blocked layout its positions would come before its channels."""
    monkeypatch.setattr("isobit_onnx.run.session.BLOCKED_COST", 0.0)
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((16, 16, 3, 3)) for name in ("w", "v")}
    numbers = {"apart": [0, 16, -1], "start": [0], "end": [20], "axis": [2]}
    proto = small.model(
        [
            small.node("Conv", "x w", "first"),
            small.node("Conv", "first v", "second"),
            small.node("Reshape", "second apart", "flat"),
            small.node("Slice", "flat start end axis", "y"),
        ],
        [small.value("x", ["n", 16, 12, 12])],
        [small.value("y", ["n", 16, 20])],
        {**weights, **{name: small.constant(name, value, np.int64) for name, value in numbers.items()}},
    )
    batches = [{"x": rng.standard_normal((4, 16, 12, 12)).astype(np.float32)} for _ in range(4)]
    opened, whole = OnnxBackend().open(proto), Collect()
    y = Tensor(opened.graph.outputs["y"])
    opened.observe(batches, [Request(y, Histogram()), Request(y, whole)])
    np.testing.assert_array_equal(whole.values, np.concatenate([small.runtime(proto, batch)["y"] for batch in batches]))
