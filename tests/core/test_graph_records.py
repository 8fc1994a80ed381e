"""Graphs as JSON data and back."""

from __future__ import annotations

import json

import numpy as np
import pytest

from isobit.errors import ModelError
from isobit.graph import (
    Graph,
    Node,
    Permute,
    Take,
    TensorInfo,
    View,
    WeightInfo,
    differences,
    graph_from_record,
    graph_to_record,
)
from isobit.testing.networks import NETWORKS


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_round_trip(name: str) -> None:
    network = NETWORKS[name]()
    graph = network.graph
    again = graph_from_record(json.loads(json.dumps(graph_to_record(graph))))
    assert differences(graph, again, network.weights.__getitem__, network.weights.__getitem__) == []
    assert [(n.name, n.op, n.inputs, n.outputs, dict(n.attributes), n.parts) for n in again.nodes] == [
        (n.name, n.op, n.inputs, n.outputs, dict(n.attributes), n.parts) for n in graph.nodes
    ]
    assert (again.inputs, dict(again.outputs), dict(again.tensors)) == (
        graph.inputs, dict(graph.outputs), dict(graph.tensors),
    )  # fmt: skip
    for weight, info in graph.weights.items():
        read_back = again.weights[weight]
        assert (read_back.shape, read_back.dtype, read_back.source, read_back.layout, read_back.magnitude) == (
            info.shape, info.dtype, info.source, info.layout, info.magnitude,
        )  # fmt: skip
        if info.value is not None:
            assert read_back.value is not None
            assert read_back.value.dtype == info.value.dtype
            np.testing.assert_array_equal(read_back.value, info.value)


def test_values_attributes_and_layouts_of_every_kind() -> None:
    values = {
        "float": np.array([0.1, -1e-40, np.inf], np.float32),
        "half": np.array(1 / 3, np.float16),
        "int": np.array([[1 << 60, -3]], np.int64),
        "flag": np.array([True, False]),
    }
    layout = (Take(1), Permute((1, 0)), View((6,), (2, 3)))
    weights = {name: WeightInfo(v.shape, str(v.dtype), v, f"{name}.source", layout) for name, v in values.items()}
    attributes = {"axes": (1, 2), "mode": "linear", "scales": (1.0, np.float32(0.1)), "nothing": None, "on": True}
    node = Node("n", "Thing", ("x", None, *values), ("y", "y:1"), attributes, ("a", "b"))
    tensors = {"x": TensorInfo(("batch", None, 3)), "y": TensorInfo(None, "int64"), "y:1": TensorInfo((), "bool", 0)}
    graph = Graph((node,), ("x",), {"out": "y"}, tensors, weights, ("a note",))
    again = graph_from_record(json.loads(json.dumps(graph_to_record(graph))))
    assert again.nodes[0].inputs == node.inputs
    assert dict(again.nodes[0].attributes) == {**attributes, "scales": (1.0, float(np.float32(0.1)))}
    assert dict(again.tensors) == tensors
    assert again.notes == ("a note",)
    for name, value in values.items():
        read_back = again.weights[name].value
        assert read_back is not None
        assert (read_back.dtype, read_back.shape, again.weights[name].layout) == (value.dtype, value.shape, layout)
        np.testing.assert_array_equal(read_back, value)


@pytest.mark.parametrize("record", [{}, {"nodes": 3}, {"nodes": [{"name": "x"}]}])
def test_other_data_is_refused(record: dict) -> None:
    with pytest.raises(ModelError, match="record of a graph"):
        graph_from_record(record)
