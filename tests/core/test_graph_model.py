"""GraphModel with an engine in NumPy: the interpreter of `isobit.testing`, to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import ReferenceType, ref

import numpy as np
import pytest
from numpy_backend import NumpyEngine

from isobit.backend import CheckedModel, Differentiable
from isobit.data import example_by_name
from isobit.edits import AddBias, NewNode, Replace, SetWeights
from isobit.encodings import Encoding
from isobit.errors import EditError, ModelError
from isobit.graph import Input, Site, Tensor, Weight
from isobit.graph_backend import DifferentiableGraphModel, GraphBuilder, GraphModel, run_graph
from isobit.statistics import Histogram, MinMax, Moments, Request, observe_tensor
from isobit.testing import interpreter
from isobit.testing.collecting import Collect
from isobit.testing.networks import NETWORKS


class Strict(NumpyEngine):
    """An engine that refuses ops for which it has no kernel."""

    ops = interpreter.OPS


class Descending(Strict):
    """An engine with a made-up gradient of the first output."""

    def gradient(self, model: GraphModel, function: Any, weights: Any, feeds: Any) -> tuple[Any, Mapping[str, Any]]:
        outputs = {name: Scalar(value) for name, value in self.run(model, feeds, ())[0].items()}
        return function(outputs), weights


class Scalar(float):
    """A framework's own number."""

    shape, dtype = (), "float32"

    def __new__(cls, value: Any) -> Scalar:
        return super().__new__(cls, np.asarray(value).flat[0])


def opened(name: str, engine: Any = None) -> tuple[CheckedModel, Any]:
    network = NETWORKS[name]()
    return CheckedModel.of(GraphModel(engine or Strict(), network.graph, network.weights)), network


def some_encodings(model: Any, network: Any) -> dict[Site, Encoding]:
    """Tensors, weights, and a reader of its own."""
    sites: dict[Site, Encoding] = {Tensor(name): Encoding.of("uint6", 0.1, 20) for name in model.graph.inputs}
    for node in model.graph.nodes:
        sites[Tensor(node.outputs[0])] = Encoding.of("int6", 0.1)
        if node.inputs[0] in model.graph.tensors:
            sites[Input(node.name, 0)] = Encoding.of("int5", 0.2)
    sites.update({Weight(n): Encoding.of("int4", 0.1) for n, i in model.graph.weights.items() if len(i.shape) > 1})
    return sites


@pytest.mark.parametrize("name", ["conv_net", "residual", "shared_weights", "upsampler", "recurrent"])
def test_it_is_the_interpreter_to_the_last_bit(name: str) -> None:
    """In float, quantized, and with quantizers off; every tensor before and after its quantizer."""
    model, network = opened(name)
    batch = network.batch(2)
    wide = {key: value.astype(np.float64) if value.dtype.kind == "f" else value for key, value in batch.items()}
    encodings = some_encodings(model, network)
    off = list(encodings)[::3]
    active: dict[Site, Encoding] = {}
    for step in ("float", "quantized", "off"):
        if step == "quantized":
            model.set_quantizers(encodings)
            active = encodings
        elif step == "off":
            model.enable(off, on=False)
            active = {s: e for s, e in encodings.items() if s not in off}
            for site in off:  # a reader whose own quantizer is off reads the unrounded tensor
                if isinstance(site, Input):
                    active[site] = Unchanged()
        expected = interpreter.interpret(model.graph, weights_of(model), wide, active)
        outputs = model.run(batch)
        for key, tensor in model.graph.outputs.items():
            np.testing.assert_array_equal(outputs[key], expected[tensor].astype(np.float32), err_msg=step)
        collectors = {tensor: Collect() for tensor in model.graph.tensors}
        model.observe([batch], [Request(Tensor(tensor), collect, "after") for tensor, collect in collectors.items()])
        for tensor, collect in collectors.items():
            np.testing.assert_array_equal(collect.values, np.asarray(expected[tensor], np.float32), err_msg=step)
        before = {tensor: Collect() for tensor in model.graph.tensors}
        model.observe([batch], [Request(Tensor(tensor), collect) for tensor, collect in before.items()])
        for tensor, collect in before.items():
            encoding = active.get(Tensor(tensor))
            rounded = collect.values if encoding is None else encoding.fake_quantize(collect.values)
            np.testing.assert_array_equal(rounded, collectors[tensor].values, err_msg=step)


def weights_of(model: CheckedModel) -> Callable[[str], np.ndarray]:
    """Constants in float64, as the engine has them."""
    return lambda name: model.weight(name).astype(np.float64) if model.graph.is_float(name) else model.weight(name)


class Unchanged(Encoding):
    """A quantizer that is off."""

    def __init__(self) -> None:
        pass

    def fake_quantize(self, x: np.ndarray) -> np.ndarray:
        return x


def test_a_reader_of_its_own_is_observed_behind_its_own_quantizer() -> None:
    model, network = opened("conv_net")
    batch, encoding = network.batch(2), Encoding.of("int4", 0.3)
    model.set_quantizers({Tensor("conv1"): Encoding.of("int8", 0.02), Input("bn1", 0): encoding})
    before, after, whole = Collect(), Collect(), Collect()
    requests = [
        Request(Input("bn1", 0), before),
        Request(Input("bn1", 0), after, "after"),
        Request(Tensor("conv1"), whole),
    ]
    model.observe([batch], requests)
    np.testing.assert_array_equal(before.values, whole.values)
    np.testing.assert_array_equal(after.values, encoding.fake_quantize(whole.values))


def test_edits_keep_what_is_still_there_and_refuse_what_no_kernel_runs() -> None:
    model, network = opened("residual")
    encodings = some_encodings(model, network)
    model.set_quantizers(encodings)
    name = next(iter(n for n, i in model.graph.weights.items() if len(i.shape) == 4))
    stem = next(node for node in model.graph.nodes if node.op == "Conv" and len(node.inputs) == 2)
    model.enable([Tensor("stem_bn")], on=False)
    edits = [SetWeights({name: model.weight(name) * 2}), AddBias(stem.name, np.ones(8)), Replace("stem_bn")]
    copy = model.copy()
    model.edit(edits)
    assert model.edit_log == edits
    assert copy.edit_log == []
    assert Tensor("stem_bn") not in model.encodings()
    assert isinstance(model.inner, GraphModel)
    assert isinstance(copy.inner, GraphModel)
    assert not model.inner.off
    assert model.encodings().keys() == {s for s in encodings if model.graph.has_site(s)}
    batch = network.batch(2)
    wide = {key: value.astype(np.float64) for key, value in batch.items()}
    expected = interpreter.outputs(model.graph, weights_of(model), wide, model.encodings())
    before = model.run(batch)
    for key, value in before.items():
        np.testing.assert_array_equal(value, expected[key].astype(np.float32))
    assert Tensor("stem_bn") in copy.inner.off, "a copy shares nothing"
    with pytest.raises(EditError, match=r"numpy backend cannot make a Mish node \('stem_relu'\); it makes Add, "):
        model.edit([Replace("stem_relu", (NewNode("Mish"),)), SetWeights({name: model.weight(name) * 0})])
    assert model.edit_log == edits
    for key, value in before.items():
        np.testing.assert_array_equal(model.run(batch)[key], value)


def test_bytes_and_back() -> None:
    checked, network = opened("recurrent")
    model = checked.inner
    assert isinstance(model, GraphModel)
    checked.set_quantizers(some_encodings(checked, network))
    checked.enable([Tensor(model.graph.nodes[0].outputs[0])], on=False)
    restored = GraphModel.restore(Strict(), model.state())
    assert (restored.encodings(), restored.off) == (model.encodings(), model.off)
    for name, value in model.run(network.batch(2)).items():
        np.testing.assert_array_equal(restored.run(network.batch(2))[name], value)
    for nonsense in (b"", b"12345678", model.state()[:-40], b"\x05" + b"\0" * 7 + b"[1,2]"):
        with pytest.raises(ModelError, match="no state of a numpy model"):
            GraphModel.restore(Strict(), nonsense)


def test_a_constant_of_one_number_keeps_its_shape() -> None:
    builder = GraphBuilder()
    x = builder.input("x", ("batch", 3))
    y = builder.node("Mul", [x, builder.constant(np.float32(2.0).reshape(()))], ("batch", 3))
    model = GraphModel(Strict(), *builder.canonical({"y": y}))
    restored = GraphModel.restore(Strict(), model.state())
    assert restored.weight("constant").shape == model.weight("constant").shape == ()


def test_an_op_without_a_kernel_is_refused_at_opening() -> None:
    builder = GraphBuilder()
    builder.scope = "attention/mystery"
    mystery = builder.node("Mystery", [builder.input("x", ("batch", 3))], ("batch", 3))
    with pytest.raises(ModelError, match=r"numpy backend does not read 'Mystery' \(node 'attention/mystery'\)"):
        GraphModel(Strict(), *builder.canonical({"y": mystery}))


def test_gradients_are_the_engines_own() -> None:
    network = NETWORKS["shared_weights"]()
    model = DifferentiableGraphModel(Descending(), network.graph, network.weights)
    assert not isinstance(GraphModel(Descending(), network.graph, network.weights), Differentiable)
    assert isinstance(model, Differentiable)
    assert isinstance(model.copy(), Differentiable)
    assert isinstance(DifferentiableGraphModel.restore(Descending(), model.state()), Differentiable)
    name, batch = "fc1.weight", network.batch(2)
    value, gradients = model.gradient(lambda outputs: outputs["y"], {name: model.weight(name)}, batch)
    assert value == float(np.float32(model.run(batch)["y"].flat[0]))
    assert gradients[name].dtype == np.float32


@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("make", [lambda: Histogram(limit=16), MinMax, Moments])
def test_of_a_tensor_elsewhere_no_more_is_fetched_than_an_observer_needs(make: Any, bad: bool) -> None:
    values = np.random.default_rng(0).standard_normal((2, 3, 9, 9)).astype(np.float32)
    if bad:
        values[1, 2, 3, 4] = np.nan
    fetched: list[int] = []

    def fetch(array: np.ndarray) -> np.ndarray:
        fetched.append(array.size)
        return array

    fetched_observer, local_observer = make(), make()
    observe_tensor(fetched_observer, values, 1, lambda array: (float(array.min()), float(array.max())), fetch)
    local_observer.update(values, 1)
    if isinstance(fetched_observer, Histogram):
        assert fetched_observer == local_observer
        assert fetched[0] == values.size if bad else fetched[0] < values.size / 4
    elif isinstance(fetched_observer, MinMax):
        np.testing.assert_array_equal(fetched_observer.batches, local_observer.batches)
        assert bad or not fetched
    else:
        np.testing.assert_array_equal(fetched_observer.mean, local_observer.mean)


def test_a_builder_names_what_is_left_after_its_scope() -> None:
    """Two parameters of one name, a scope of several nodes of which one is left, and one that is used twice."""
    builder = GraphBuilder()
    x = builder.input("x", ("batch", 4))
    w, b = builder.constant(np.ones((4, 3), np.float32), "w"), builder.constant(np.ones(3, np.float32), "w")
    assert (w, b) == ("w", "w#1")
    builder.scope = "fc"
    y = builder.node("MatMul", [x, w], ("batch", 3))
    y = builder.node("Add", [y, b], ("batch", 3))
    builder.scope = "act"
    y = builder.node("Relu", [y], ("batch", 3))
    y = builder.node("Tanh", [y], ("batch", 3))
    graph, arrays = builder.canonical({"y": y})
    assert [(node.name, node.outputs) for node in graph.nodes] == [
        ("fc", ("fc",)), ("act", ("act",)), ("act#1", ("act#1",)),
    ]  # fmt: skip
    assert graph.outputs == {"y": "act#1"}
    assert graph.nodes[0].inputs == ("x", "w", "w#1")
    np.testing.assert_array_equal(arrays["w"], np.ones((3, 4)))
    with pytest.raises(ModelError, match="'x' has the name of another"):
        builder.input("x", ("batch", 4))


def test_tensors_are_let_go_after_their_last_reader() -> None:
    """A tensor that two readers share, or one reads twice, is kept until the last read."""
    builder = GraphBuilder()
    x = builder.input("x", ("batch", 4))
    a = builder.node("Relu", [x], ("batch", 4))
    b = builder.node("Mul", [a, a], ("batch", 4))
    c = builder.node("Add", [b, a], ("batch", 4))
    graph, weights = builder.canonical({"first": a, "last": c})
    outputs = run_graph(graph, interpreter.compute, weights, {}, {"x": np.full((1, 4), 3.0)})
    np.testing.assert_array_equal(outputs["last"], np.full((1, 4), 12.0))
    np.testing.assert_array_equal(outputs["first"], np.full((1, 4), 3.0))


@pytest.mark.parametrize("own", [False, True], ids=["all readers", "one reader of its own"])
def test_what_a_quantizer_rounds_is_kept_for_readers_with_their_own(own: bool) -> None:
    builder = GraphBuilder()
    x = builder.input("x", ("batch", 4))
    a = builder.node("Relu", [x], ("batch", 4))
    b = builder.node("Sigmoid", [a], ("batch", 4))
    c = builder.node("Add", [b, a], ("batch", 4))
    graph, weights = builder.canonical({"last": c})
    unrounded: list[ReferenceType[np.ndarray]] = []
    alive: list[bool] = []

    def observed(node: Any, operands: Sequence[Any]) -> Any:
        alive.extend(array() is not None for array in unrounded if node.op == "Add")
        return interpreter.compute(node, operands)

    def half(array: np.ndarray) -> np.ndarray:
        unrounded.append(ref(array))
        return array / 2

    rounders: dict[Any, Any] = {Tensor(a): half}
    if own:
        rounders[Input(graph.node(c).name, 1)] = lambda array: array / 4
    outputs = run_graph(graph, observed, weights, rounders, {"x": np.full((1, 4), 8.0)})
    assert alive == [own]
    np.testing.assert_array_equal(outputs["last"], np.full((1, 4), 1 / (1 + np.exp(-4.0)) + (2.0 if own else 4.0)))


def test_what_is_not_tapped_is_not_computed() -> None:
    """Nodes that a tapped tensor, or what one reader sees, does not depend on; nor outputs."""
    builder = GraphBuilder()
    x = builder.input("x", ("batch", 4))
    a = builder.node("Relu", [x], ("batch", 4))
    b = builder.node("Sigmoid", [x], ("batch", 4))
    c = builder.node("Add", [a, a], ("batch", 4))
    graph, weights = builder.canonical({"last": builder.node("Mul", [b, c], ("batch", 4))})
    own = Input(graph.node(c).name, 1)
    seen: list[tuple[Any, Any]] = []
    computed: list[str] = []

    def counted(node: Any, operands: Sequence[Any]) -> Any:
        computed.append(node.op)
        return interpreter.compute(node, operands)

    for only, ops in (
        ([(Tensor("x"), "after")], []),
        ([(Tensor(a), "before")], ["Relu"]),
        ([(Tensor(b), "before"), (own, "after")], ["Relu", "Sigmoid", "Add"]),
    ):
        seen.clear()
        computed.clear()
        rounders = {own: lambda array: array / 4}
        feeds = {"x": np.full((1, 4), 8.0)}
        assert run_graph(graph, counted, weights, rounders, feeds, lambda *told: seen.append(told), only) == {}
        assert computed == ops
        assert {place for place, _ in seen} >= set(only)
        assert all((array == 8 / 4).all() for place, array in seen if place[0] == own)


def test_grids_broadcast_against_what_they_round() -> None:
    """Of a tensor whose channels the graph does not know, of a weight in blocks, and of one reader's constant."""
    builder = GraphBuilder()
    x = builder.input("x", ("batch", None))
    builder.scope = "fc"
    w = builder.constant(np.ones((4, 6), np.float32), "w")
    graph, weights = builder.canonical({"y": builder.node("MatMul", [x, w], ("batch", 6))})
    assert graph.nodes[0].op == "Linear"
    model = GraphModel(Strict(), graph, weights)
    per_channel = Encoding.of("int8 per-channel", np.arange(1.0, 5.0), np.zeros(4, int), 1)
    rows = Encoding.of("int8 per-channel", np.arange(1.0, 7.0), np.zeros(6, int), 0)
    blocks = Encoding.of("int4 block=2", np.arange(1.0, 13.0).reshape(6, 2), np.zeros((6, 2), int), 1)
    model.set_quantizers({Tensor("x"): per_channel, Weight("w"): blocks, Input("fc", 1): rows})
    assert model.grid(Tensor("x"))[0].tolist() == [[1, 2, 3, 4]]
    assert model.grid(Weight("w"))[0][0].tolist() == [1, 1, 2, 2]
    assert model.grid(Input("fc", 1))[1].shape == (6, 1)
    model.set_quantizers({Tensor("x"): Encoding.of("int8", 0.5)})
    assert model.grid(Tensor("x"))[0].shape == ()


def test_a_builder_refuses_other_floats() -> None:
    builder = GraphBuilder()
    x = builder.input("x", ("batch", 3))
    y = builder.node("Mul", [x, builder.constant(np.ones(3, np.float16), "half")], ("batch", 3))
    with pytest.raises(ModelError, match="parameter 'half' is float16: parameters are float32 here"):
        builder.canonical({"y": y})


def test_an_example_is_given_by_name_or_in_order() -> None:
    x, y = np.ones(2), np.zeros(3)
    for example in ({"x": x, "y": y}, (x, y)):
        assert list(example_by_name(example, ["x", "y"])) == ["x", "y"]
    assert list(example_by_name(x, ["x", "y"])) == ["x"]
    with pytest.raises(ModelError, match=r"takes 1 inputs \(x\); the example has 2"):
        example_by_name([x, y], ["x"])
    with pytest.raises(ModelError, match="pass example_inputs"):
        example_by_name(None, ["x"])
