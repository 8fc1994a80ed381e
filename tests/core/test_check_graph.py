"""What a sound graph is: each fault is found, and the message names the node."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sketch import Sketch

from isobit.canonical import canonicalize
from isobit.edits import Insert, NewNode, plan_edits
from isobit.edits.draft import Draft
from isobit.errors import ModelError
from isobit.graph import Graph, Node, Tensor, TensorInfo
from isobit.graph.check_graph import check_graph, check_structure, is_checking
from isobit.graph.shape_inference import infer, infer_dtype


def network() -> Graph:
    sketch = Sketch()
    x = sketch.input("x", "N", 3, 4, 4)
    y = sketch.node("Conv", x, sketch.random("conv.w", 5, 3, 3, 3), sketch.random("conv.b", 5), name="conv",
                    shape=("N", 5, 2, 2))  # fmt: skip
    y = sketch.node("Relu", y, name="relu", shape=("N", 5, 2, 2))
    y = sketch.node("Reshape", y, name="flat", shape=("N", 20))
    y = sketch.node("Linear", y, sketch.random("fc.w", 2, 20), name="fc", shape=("N", 2))
    return canonicalize(sketch.graph(y))


def with_node(which: str, **changes: Any) -> Callable[[Graph], Graph]:
    def change(graph: Graph) -> Graph:
        nodes = tuple(replace(node, **changes) if node.name == which else node for node in graph.nodes)
        return replace(graph, nodes=nodes)

    return change


def with_tensor(name: str, **changes: Any) -> Callable[[Graph], Graph]:
    return lambda graph: replace(graph, tensors={**graph.tensors, name: replace(graph.tensors[name], **changes)})


def with_constant(name: str, **changes: Any) -> Callable[[Graph], Graph]:
    return lambda graph: replace(graph, weights={**graph.weights, name: replace(graph.weights[name], **changes)})


FAULTS: list[tuple[Callable[[Graph], Graph], str]] = [
    (with_node("relu", name="conv"), r"two nodes are named 'conv', the second is node 'conv' \(Relu\)"),
    (with_node("relu", outputs=("conv",)), r"node 'relu' \(Relu\) makes 'conv', which exists before it"),
    (with_node("relu", outputs=("new",)), r"node 'relu' \(Relu\): the graph says nothing of tensor 'new'"),
    (
        with_node("relu", inputs=("fc",)),
        r"'relu' \(Relu\) reads 'fc' at input 0, which node 'fc' \(Linear\) makes only",
    ),
    (with_node("fc", inputs=("flat", "no")), r"node 'fc' \(Linear\) reads 'no' at input 1, which nothing makes"),
    (lambda graph: replace(graph, nodes=graph.nodes[::-1]), r"makes only later"),
    (lambda graph: replace(graph, inputs=("x", "x")), r"two inputs have one name"),
    (lambda graph: replace(graph, outputs={"y": "no"}), r"output 'y' is 'no', which is no tensor"),
    (
        lambda graph: replace(graph, tensors={**graph.tensors, "odd": TensorInfo(None)}),
        r"'odd' is no input and no node",
    ),
    (
        lambda graph: replace(graph, weights={**graph.weights, "relu": graph.weights["conv.b"]}),
        r"node 'relu' \(Relu\): 'relu' is a tensor and a constant",
    ),
    (with_constant("conv.b", shape=(6,)), r"constant 'conv.b' is said to be \(6,\) and its value is \(5,\)"),
    (with_constant("conv.b", magnitude=0.0), r"constant 'conv.b' is said to reach 0.0 and reaches"),
    (with_constant("conv.w", shape=(5, 2, 3, 3)), r"node 'conv' \(Conv\): weight \(5, 2, 3, 3\) with group 1 reads 2"),
    (with_tensor("flat", shape=("N", 21)), r"node 'flat' \(Reshape\)"),
    (with_tensor("relu", shape=("N", 5, 2, 3)), r"'relu' is said to be \('N', 5, 2, 3\), and \('N', 5, 2, 2\) follows"),
    (with_tensor("relu", dtype="int64"), r"node 'relu' \(Relu\): 'relu' is said to be int64, and float32 follows"),
    (with_tensor("relu", channel_axis=4), r"node 'relu' \(Relu\): channel axis 4 of 'relu' is none of its 4 axes"),
]


@pytest.mark.parametrize(("spoil", "said"), FAULTS, ids=[said for _, said in FAULTS])
def test_each_fault_is_found_and_named(spoil: Callable[[Graph], Graph], said: str) -> None:
    graph = network()
    check_graph(graph)
    with pytest.raises(ModelError, match=f"the graph contradicts itself after a pass: .*{said}"):
        check_graph(spoil(graph), "a pass")


def test_what_is_not_known_is_no_fault() -> None:
    graph = with_tensor("relu", shape=None, channel_axis=None)(network())
    check_graph(with_tensor("conv", dtype="unknown")(graph))
    check_structure(graph)


def test_the_whole_suite_checks_passes_and_edits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_checking()
    spoilt = with_node("relu", inputs=("fc",))(network())
    with pytest.raises(ModelError, match="after reading the model: node 'relu'"):
        canonicalize(spoilt)
    draft = Draft(network(), lambda name: np.zeros(()))
    monkeypatch.setattr("isobit.edits.workspace.Workspace._free_names", lambda *_: ["relu"])
    with pytest.raises(ModelError, match="after the edit Insert: two nodes are named 'relu'"):
        draft.apply(Insert(Tensor("fc"), (NewNode("Relu"),)))


def test_a_broken_pass_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def break_shapes(graph: Graph) -> Graph:
        return replace(graph, outputs={"y": "gone"})

    monkeypatch.setattr("isobit.canonical.FORMS", (break_shapes,))
    with pytest.raises(ModelError, match="contradicts itself after break_shapes: output 'y'"):
        canonicalize(network())


@pytest.mark.parametrize(("value", "expected"), [(None, "False"), ("", "False"), ("0", "False"), ("1", "True")])
def test_the_environment_says_whether_to_check(value: str | None, expected: str) -> None:
    environment = {key: entry for key, entry in os.environ.items() if key != "ISOBIT_CHECK"}
    environment |= {} if value is None else {"ISOBIT_CHECK": value}
    code = "from isobit.graph.check_graph import is_checking; print(is_checking())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == expected


def test_a_kernel_that_is_computed_gives_the_shape_of_the_convolution() -> None:
    conv = Node("c", "Conv", ("x", "w"), ("c",))
    assert infer(conv, [("N", 4, 8, 8), (3, 4, 3, 3)], {}) == ("N", 3, 6, 6)
    assert infer(conv, [("N", 4, 8, 8), None], {}) is None
    transposed = Node("c", "ConvTranspose", ("x", "w"), ("c",))
    assert infer(transposed, [("N", 4, 8, 8), (4, 3, 3, 3)], {}) is None


def test_element_types_that_follow() -> None:
    node = Node("n", "Equal", ("a", "b"), ("n",))
    assert infer_dtype(node, ["float32", "float32"]) == "bool"
    assert infer_dtype(replace(node, op="Add"), ["int64", "int64"]) == "int64"
    assert infer_dtype(replace(node, op="Mul"), ["int64", "float32"]) is None  # by the rules of the framework
    assert infer_dtype(replace(node, op="Cast"), ["int64"]) is None


@pytest.mark.parametrize(
    ("source", "target", "result"),
    [
        (("N", 5, 8), (-1, 8), (None, 8)),  # batch and tokens as one axis
        ((6, "N", 24), (1, 6, -1, 3, 8), (1, 6, "N", 3, 8)),  # the batch is not the first axis
    ],
)
def test_edits_before_a_reshape_without_a_batch_axis(source: Any, target: Any, result: Any) -> None:
    """A shape that keeps no batch axis refuses no edit, and stays as it is."""
    sketch = Sketch()
    y = sketch.node("Relu", sketch.input("x", *source), name="relu", shape=source)
    y = sketch.node("Reshape", y, name="joined", shape=result)
    graph = canonicalize(sketch.graph(sketch.node("Relu", y, name="last", shape=result)))
    assert graph.node("joined").attributes["shape"] == target
    plan = plan_edits(graph, [Insert(Tensor("relu"), (NewNode("Tanh"),))], lambda name: sketch.values[name])
    assert plan.graph.tensors["joined"].shape == result
