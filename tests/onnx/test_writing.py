"""A neutral graph written as ONNX: what onnxruntime computes is what the interpreter computes, under the same names."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from isobit.errors import ModelError
from isobit.graph import Graph, Input, Node, Tensor, TensorInfo, Weight, WeightInfo, to_canonical
from isobit.testing import interpreter
from isobit.testing.networks import NETWORKS
from isobit_onnx.write.write_onnx import write_onnx


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_reference_networks(name: str) -> None:
    network = NETWORKS[name]()
    graph, weights = network.graph, network.weights
    proto, names = write_onnx(graph, weights.__getitem__)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    batch = network.batch(3)
    expected = interpreter.outputs(graph, weights.__getitem__, batch)
    assert [output.name for output in session.get_outputs()] == list(graph.outputs)
    for output, value in zip(session.get_outputs(), session.run(None, batch), strict=True):
        np.testing.assert_allclose(value, expected[output.name], rtol=1e-3, atol=1e-4)
    stored = {constant.name: onnx.numpy_helper.to_array(constant) for constant in proto.graph.initializer}
    for weight, array in weights.items():
        entry = names[Weight(weight)]
        np.testing.assert_array_equal(to_canonical(stored[entry.name], entry.layout), array)
    nodes = {node.name: node for node in proto.graph.node}
    for node in graph.nodes:
        for index, read_name in enumerate(node.inputs):
            if read_name is None:
                continue
            entry = names[Input(node.name, index)]
            site = Tensor(read_name) if read_name in graph.tensors else Weight(read_name)
            source = nodes[entry.name].input[entry.input]
            views = ("Transpose", "Unsqueeze")
            view = next((n for n in proto.graph.node if source in n.output and n.op_type in views), None)
            assert names[site].name in (source, view.input[0] if view is not None else None)


def graph_of_one_node(op: str, value: np.ndarray | None, shape: tuple, /, **attributes: object) -> tuple[Graph, dict]:
    """A graph of one node on ``x`` (batch, 4, 5, 5), with `value` as its constant where there is one."""
    weights = {} if value is None else {"w": value}
    node = Node("n", op, ("x", *weights), ("n",), attributes, ("n",))
    tensors = {"x": TensorInfo(("batch", 4, 5, 5)), "n": TensorInfo(shape)}
    infos = {name: WeightInfo.of(array, name) for name, array in weights.items()}
    return Graph((node,), ("x",), {"y": "n"}, tensors, infos), weights


X = np.random.default_rng(0).standard_normal((3, 4, 5, 5)).astype(np.float32)
FORMS = {
    "slope a channel": (
        graph_of_one_node("PRelu", np.full(4, 0.1, np.float32), ("batch", 4, 5, 5)),
        np.where(X < 0, X * 0.1, X),
    ),
    "root mean square": (
        graph_of_one_node("RMSNormalization", np.full(5, 2.0, np.float32), ("batch", 4, 5, 5), axis=-1, epsilon=1e-5),
        X / np.sqrt((X**2).mean(-1, keepdims=True) + 1e-5) * 2,
    ),
    "flat maximum": (graph_of_one_node("GlobalMaxPool", None, ("batch", 4), keepdims=0), X.max((2, 3))),
    "kept sizes": (graph_of_one_node("Expand", None, ("batch", 4, 5, 5), shape=(-1, -1, 5, 5)), X),
    "two unknown sizes": (
        graph_of_one_node("Reshape", None, ("batch", 4, None), shape=(-1, 4, -1)),
        X.reshape(3, 4, 25),
    ),
    "one-sided": (graph_of_one_node("Clip", None, ("batch", 4, 5, 5), max=0.5), np.minimum(X, 0.5)),
    "swish": (graph_of_one_node("Swish", None, ("batch", 4, 5, 5)), X / (1 + np.exp(-X))),
    "mean": (graph_of_one_node("ReduceMean", None, ("batch", 5), axes=(1, 2), keepdims=0), X.mean((1, 2))),
    "cast": (graph_of_one_node("Cast", None, ("batch", 4, 5, 5), to="float32"), X),
}


@pytest.mark.parametrize("name", FORMS)
def test_ops_whose_onnx_form_differs(name: str) -> None:
    (graph, weights), expected = FORMS[name]
    proto, _ = write_onnx(graph, weights.__getitem__)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    np.testing.assert_allclose(session.run(["y"], {"x": X})[0], expected, rtol=1e-5, atol=1e-6)


def test_an_op_without_a_form_is_an_error() -> None:
    graph, weights = graph_of_one_node("keras::Thing", None, ("batch", 4))
    with pytest.raises(ModelError, match="'n'.*keras::Thing"):
        write_onnx(graph, weights.__getitem__)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (("n", "a", "b", 5), (-1, 1, -1, -1, 5)),
        (("n", "a", "b", 5), (-1, 1, 1, -1, -1, 5)),
        (("n", 1, "a", "b"), (-1, -1, -1)),
        (("n", 1, "a", "b", 1), (-1, -1, 1, -1)),
        (("n", "a", 6), (-1, -1, 2, 3)),
    ],
)
def test_several_open_sizes_are_those_of_the_axes_they_were(source: tuple, target: tuple) -> None:
    x = np.arange(180, dtype=np.float32)
    x = x[: np.prod([n if isinstance(n, int) else 2 + i for i, n in enumerate(source)])]
    x = x.reshape([n if isinstance(n, int) else 2 + i for i, n in enumerate(source)])
    opened = iter([n for n in x.shape if n not in (1, 6)] if 5 not in source else x.shape)
    shape = tuple(next(opened) if n < 0 else n for n in target)
    output = tuple(None if n < 0 else n for n in target)
    node = Node("n", "Reshape", ("x",), ("n",), {"shape": target}, ("n",))
    graph = Graph((node,), ("x",), {"y": "n"}, {"x": TensorInfo(source), "n": TensorInfo(output)}, {})
    proto, _ = write_onnx(graph, {}.__getitem__)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    np.testing.assert_array_equal(session.run(["y"], {"x": x})[0], x.reshape(shape))


@pytest.mark.parametrize("dtype", ["bool", "int8", "int16", "uint32", "int64", "float32"])
def test_a_choice_of_any_type_runs(dtype: str) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 2, (2, 3)).astype(dtype) for _ in range(2))
    chosen = rng.integers(0, 2, (2, 3)).astype(bool)
    info = TensorInfo(("n", 3), dtype)
    tensors = {"c": TensorInfo(("n", 3), "bool"), "a": info, "b": info, "n": info}
    node = Node("n", "Where", ("c", "a", "b"), ("n",), {}, ("n",))
    proto, _ = write_onnx(Graph((node,), ("c", "a", "b"), {"y": "n"}, tensors, {}), {}.__getitem__)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    found = session.run(["y"], {"c": chosen, "a": a, "b": b})[0]
    np.testing.assert_array_equal(found, np.where(chosen, a, b))
    assert found.dtype == dtype
