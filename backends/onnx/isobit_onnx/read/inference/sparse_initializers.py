"""Constants that a file stores without their zeros: onnx-ir forgets them, so they become plain ones."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
import onnx
from onnx import numpy_helper

from isobit_onnx.read.initializers import PROTOBUF_LIMIT


def make_dense(proto: onnx.ModelProto) -> None:
    """Write every sparse initializer out, in place, those of bodies too. Raises ValueError for one that lies."""
    for graph in _graphs(proto.graph):
        for sparse in graph.sparse_initializer:
            values, places = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
            if prod(sparse.dims) * values.itemsize > PROTOBUF_LIMIT:
                raise ValueError(f"sparse initializer {sparse.values.name!r} is larger than a file can hold")
            dense = np.zeros(tuple(sparse.dims), values.dtype)
            if places.ndim == 2:  # one row of coordinates a value
                dense[tuple(places.T)] = values
            else:
                dense.reshape(-1)[places] = values
            graph.initializer.append(numpy_helper.from_array(dense, sparse.values.name))
        del graph.sparse_initializer[:]


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                yield from _graphs(body)
