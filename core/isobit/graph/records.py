"""A neutral graph as JSON data and back: for backends whose saved models hold the graph itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from isobit.errors import ModelError
from isobit.graph import layout
from isobit.graph.graph import Graph, Node, TensorInfo, WeightInfo

_STEPS: dict[str, Any] = {step.__name__: step for step in get_args(layout.LayoutStep)}


def graph_to_record(graph: Graph) -> dict[str, Any]:
    """A JSON-ready record of a graph; values of large constants are not in it."""
    return {
        "nodes": [
            {
                "name": node.name,
                "op": node.op,
                "inputs": list(node.inputs),
                "outputs": list(node.outputs),
                "attributes": {key: _plain(value) for key, value in node.attributes.items()},
                "parts": list(node.parts),
            }
            for node in graph.nodes
        ],
        "inputs": list(graph.inputs),
        "outputs": dict(graph.outputs),
        "tensors": {
            name: {"shape": _plain(info.shape), "dtype": info.dtype, "channel_axis": info.channel_axis}
            for name, info in graph.tensors.items()
        },
        "weights": {name: _weight_record(info) for name, info in graph.weights.items()},
        "notes": list(graph.notes),
    }


def graph_from_record(record: Mapping[str, Any]) -> Graph:
    """The inverse of `graph_to_record`. Raises ModelError for a record that is none."""
    try:
        nodes = tuple(
            Node(
                entry["name"],
                entry["op"],
                tuple(entry["inputs"]),
                tuple(entry["outputs"]),
                {key: _tuples(value) for key, value in entry["attributes"].items()},
                tuple(entry["parts"]),
            )
            for entry in record["nodes"]
        )
        tensors = {
            name: TensorInfo(_tuples(entry["shape"]), entry["dtype"], entry["channel_axis"])
            for name, entry in record["tensors"].items()
        }
        weights = {name: _weight(entry) for name, entry in record["weights"].items()}
        return Graph(nodes, tuple(record["inputs"]), record["outputs"], tensors, weights, tuple(record["notes"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"not a record of a graph: {error!r}") from error


def _weight_record(info: WeightInfo) -> dict[str, Any]:
    return {
        "shape": list(info.shape),
        "dtype": info.dtype,
        "value": None if info.value is None else _array_record(info.value),
        "source": info.source,
        "layout": [{"step": type(step).__name__, **_fields(step)} for step in info.layout],
        "magnitude": info.magnitude,
    }


def _fields(step: layout.LayoutStep) -> dict[str, Any]:
    return {field.name: _plain(getattr(step, field.name)) for field in fields(step)}


def _weight(entry: Mapping[str, Any]) -> WeightInfo:
    steps = tuple(
        _STEPS[step["step"]](**{key: _tuples(value) for key, value in step.items() if key != "step"})
        for step in entry["layout"]
    )
    value = None if entry["value"] is None else _array(entry["value"])
    return WeightInfo(tuple(entry["shape"]), entry["dtype"], value, entry["source"], steps, entry["magnitude"])


def _array_record(array: NDArray[Any]) -> dict[str, Any]:
    kind = np.float64 if array.dtype.kind not in "biu" else array.dtype  # exact for every smaller float type
    return {"dtype": str(array.dtype), "shape": list(array.shape), "data": array.astype(kind).reshape(-1).tolist()}


def _array(entry: Mapping[str, Any]) -> NDArray[Any]:
    return np.array(entry["data"]).astype(entry["dtype"]).reshape(entry["shape"])


def _plain(value: Any) -> Any:
    """Tuples as lists, NumPy's numbers as Python's."""
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    return value.item() if isinstance(value, np.generic) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
