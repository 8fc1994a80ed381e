"""GraphModel with an engine in NumPy: the model that `numpy_backend` keeps by itself, to the last bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import ReferenceType, ref

import numpy as np
import pytest
from numpy_backend import OPERATORS, NumpyModel, compute

from isobit.backend import BackendModel, Differentiable
from isobit.edit import AddBias, NewNode, Replace, SetWeights
from isobit.encoding import Encoding
from isobit.errors import DataError, EditError, EncodingError, IsobitError, ModelError
from isobit.feeding import feed
from isobit.graph_builder import GraphBuilder
from isobit.graph_model import GraphModel
from isobit.moments import Moments
from isobit.observer import Request
from isobit.running import Tap, run_graph
from isobit.sites import Input, Site, Tensor, Weight
from isobit.statistics import Histogram, MinMax
from isobit.testing.collecting import Collect
from isobit.testing.networks import NETWORKS


class NumpyEngine:
    """Interprets the graph in float64, as `numpy_backend` does."""

    name, ops = "NumPy", frozenset(OPERATORS)

    def native(self, model: GraphModel) -> Any:
        return model.graph

    def run(
        self, model: GraphModel, feeds: Mapping[str, Any], taps: Sequence[Tap]
    ) -> tuple[Mapping[str, Any], Sequence[Any]]:
        found: dict[Tap, Any] = {}
        rounders = {
            site: (lambda x: x) if site in model.off else lambda x, e=e: e.fake_quantize(x).astype(np.float64)
            for site, e in model.quantizers.items()
        }
        wide = {name: working(value) for name, value in model.weights.items()}
        feeds = {name: working(value) for name, value in feeds.items()}
        outputs = run_graph(model.graph, compute, wide, rounders, feeds, found.__setitem__)
        return {name: value.astype(np.float32) for name, value in outputs.items()}, [found[tap] for tap in taps]

    def to_onnx(self, model: GraphModel) -> Any:
        raise NotImplementedError

    def bounds(self, array: np.ndarray) -> tuple[float, float]:
        return float(array.min()), float(array.max())


class Descending(NumpyEngine):
    """An engine with a gradient, by differences."""

    def gradient(self, model: GraphModel, function: Any, weights: Any, feeds: Any) -> tuple[Any, Mapping[str, Any]]:
        return Scalar(function({name: Scalar(value) for name, value in self.run(model, feeds, ())[0].items()})), weights


class Scalar(float):
    """A framework's own number."""

    shape = ()

    def __new__(cls, value: Any) -> Scalar:
        return super().__new__(cls, np.asarray(value).flat[0])


def working(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float64) if value.dtype.kind == "f" else value


def pair(name: str) -> tuple[GraphModel, NumpyModel, Any]:
    network = NETWORKS[name]()
    return (
        GraphModel(NumpyEngine(), network.graph, network.weights),
        NumpyModel(network.graph, network.weights),
        network,
    )


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
def test_it_is_the_independent_model_to_the_last_bit(name: str) -> None:
    """Plain, quantized, with quantizers off; every tensor before and after, for all readers and for one."""
    ours, theirs, network = pair(name)
    batch = network.batch(2)
    encodings = some_encodings(ours, network)
    off = list(encodings)[::3]
    for step in ("float", "quantized", "off"):
        if step == "quantized":
            ours.set_quantizers(encodings)
            theirs.set_quantizers(encodings)
        elif step == "off":
            ours.enable(off, on=False)
            theirs.enable(off, on=False)
        for key, value in theirs.run(batch).items():
            np.testing.assert_array_equal(ours.run(batch)[key], value, err_msg=step)
        for stage in ("before", "after"):
            found = {model: [Collect() for _ in model.graph.tensors] for model in (ours, theirs)}
            for model, collected in found.items():
                sites = [Tensor(tensor) for tensor in model.graph.tensors]
                model.observe([batch], [Request(s, c, stage) for s, c in zip(sites, collected, strict=True)])
            for ours_seen, theirs_seen in zip(found[ours], found[theirs], strict=True):
                np.testing.assert_array_equal(ours_seen.values, theirs_seen.values, err_msg=f"{step} {stage}")


def test_a_reader_of_its_own_is_observed_behind_its_own_quantizer() -> None:
    model, _, network = pair("conv_net")
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
    ours, theirs, network = pair("residual")
    encodings = some_encodings(ours, network)
    for model in (ours, theirs):
        model.set_quantizers(encodings)
    name = next(iter(n for n, i in ours.graph.weights.items() if len(i.shape) == 4))
    stem = next(node for node in ours.graph.nodes if node.op == "Conv" and len(node.inputs) == 2)
    ours.enable([Tensor("stem_bn")], on=False)
    edits = [SetWeights({name: ours.weight(name) * 2}), AddBias(stem.name, np.ones(8)), Replace("stem_bn")]
    twin = ours.copy()
    for model in (ours, theirs):
        model.edit(edits)
    assert Tensor("stem_bn") not in ours.encodings()
    assert not ours.off
    assert ours.encodings().keys() == {s for s in encodings if ours.graph.has_site(s)}
    batch = network.batch(2)
    for key, value in theirs.run(batch).items():
        np.testing.assert_array_equal(ours.run(batch)[key], value)
    assert Tensor("stem_bn") in twin.off, "a copy shares nothing"
    before = ours.run(batch)
    with pytest.raises(EditError, match="NumPy backend cannot make a Mish node"):
        ours.edit([Replace("stem_relu", (NewNode("Mish"),)), SetWeights({name: ours.weight(name) * 0})])
    for key, value in before.items():
        np.testing.assert_array_equal(ours.run(batch)[key], value)


def test_bytes_and_back() -> None:
    model, _, network = pair("recurrent")
    model.set_quantizers(some_encodings(model, network))
    model.enable([Tensor(model.graph.nodes[0].outputs[0])], on=False)
    made = GraphModel.restore(NumpyEngine(), model.state())
    assert (made.encodings(), made.off) == (model.encodings(), model.off)
    for name, value in model.run(network.batch(2)).items():
        np.testing.assert_array_equal(made.run(network.batch(2))[name], value)
    for nonsense in (b"", b"12345678", model.state()[:-40], b"\x05" + b"\0" * 7 + b"[1,2]"):
        with pytest.raises(ModelError, match="no state of a NumPy model"):
            GraphModel.restore(NumpyEngine(), nonsense)


def test_a_constant_of_one_number_keeps_its_shape() -> None:
    builder = GraphBuilder()
    x = builder.input("x", ("batch", 3))
    y = builder.node("Mul", [x, builder.constant(np.float32(2.0).reshape(()))], ("batch", 3))
    model = GraphModel(NumpyEngine(), *builder.canonical({"y": y}))
    made = GraphModel.restore(NumpyEngine(), model.state())
    assert made.weight("constant").shape == model.weight("constant").shape == ()


def test_what_does_not_fit_says_what_it_is() -> None:
    model = pair("conv_net")[0]
    with pytest.raises(ModelError, match="no weight 'w'"):
        model.weight("w")
    with pytest.raises(DataError, match="no array for input 'image'"):
        model.run({})
    with pytest.raises(ModelError, match=r"failed on a batch of shapes \{'image': \(2, 7\)\}"):
        model.run({"image": np.ones((2, 7), np.float32)})
    with pytest.raises(EncodingError, match="no quantizer to switch"):
        model.enable([Tensor("conv1")], on=False)
    with pytest.raises(EncodingError, match="only tensors have statistics"):
        model.observe([], [Request(Tensor("conv1.weight"), MinMax())])
    builder = GraphBuilder()
    builder.scope = "attention/mystery"
    odd = builder.node("Mystery", [builder.input("x", ("batch", 3))], ("batch", 3))
    with pytest.raises(ModelError, match=r"NumPy backend does not read 'Mystery' \(node 'attention/mystery'\)"):
        GraphModel(NumpyEngine(), *builder.canonical({"y": odd}))


def test_gradients_are_the_engines_own() -> None:
    """A model has them where its engine has, and refuses what is no number, or not finite."""
    network = NETWORKS["shared_weights"]()
    plain: BackendModel = GraphModel(NumpyEngine(), network.graph, network.weights)
    model = GraphModel(Descending(), network.graph, network.weights)
    assert not isinstance(plain, Differentiable)
    assert isinstance(model, Differentiable)
    assert isinstance(model.copy(), Differentiable)
    gone = ref(twin := model.copy())
    del twin
    assert gone() is None, "a model is no part of a cycle"
    name, batch = "fc1.weight", network.batch(2)
    value, found = model.gradient(lambda outputs: outputs["y"], {name: model.weight(name)}, batch)
    assert value == float(np.float32(model.run(batch)["y"].flat[0]))
    assert found[name].dtype == np.float32
    for weights, function in (
        ({name: model.weight(name)[:1]}, lambda outputs: outputs["y"]),
        ({name: np.full_like(model.weight(name), np.inf)}, lambda outputs: outputs["y"]),
        ({}, lambda outputs: 1.0),
        ({}, lambda outputs: np.float32(1)),
        ({}, lambda outputs: Scalar(np.nan)),
    ):
        with pytest.raises(IsobitError):
            model.gradient(function, weights, batch)


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

    found, wanted = make(), make()
    feed(found, values, 1, lambda array: (float(array.min()), float(array.max())), fetch)
    wanted.update(values, 1)
    if isinstance(found, Histogram):
        assert found == wanted
        assert fetched[0] == values.size if bad else fetched[0] < values.size / 4
    elif isinstance(found, MinMax):
        np.testing.assert_array_equal(found.batches, wanted.batches)
        assert bad or not fetched
    else:
        np.testing.assert_array_equal(found.mean, wanted.mean)


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
    """And one that two readers share, or one reads twice, is kept as long as it is read."""
    builder = GraphBuilder()
    x = builder.input("x", ("batch", 4))
    a = builder.node("Relu", [x], ("batch", 4))
    b = builder.node("Mul", [a, a], ("batch", 4))
    c = builder.node("Add", [b, a], ("batch", 4))
    graph, weights = builder.canonical({"first": a, "last": c})
    outputs = run_graph(graph, compute, weights, {}, {"x": np.full((1, 4), 3.0)})
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
        return compute(node, operands)

    def half(array: np.ndarray) -> np.ndarray:
        unrounded.append(ref(array))
        return array / 2

    rounders: dict[Any, Any] = {Tensor(a): half}
    if own:
        rounders[Input(graph.node(c).name, 1)] = lambda array: array / 4
    outputs = run_graph(graph, observed, weights, rounders, {"x": np.full((1, 4), 8.0)})
    assert alive == [own]
    np.testing.assert_array_equal(outputs["last"], np.full((1, 4), 1 / (1 + np.exp(-4.0)) + (2.0 if own else 4.0)))
