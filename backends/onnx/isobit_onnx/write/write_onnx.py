"""The float ONNX model of a neutral graph, for backends whose program is the graph itself.

Every node becomes the ONNX nodes of its op; tensors and constants keep their names. Nothing is fused or folded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
from numpy.typing import NDArray

from isobit.backend import NameMap
from isobit.graph import Graph
from isobit_onnx.write.lower import LOWERINGS
from isobit_onnx.write.onnx_writer import Foreign, OnnxWriter


def write_onnx(
    graph: Graph, weights: Callable[[str], NDArray[Any]], foreign: Foreign | None = None
) -> tuple[onnx.ModelProto, NameMap]:
    """The model, and where each tensor, constant and node input of the graph is in it. Raises ModelError."""
    writer = OnnxWriter(graph, weights, LOWERINGS, foreign)
    return writer.write(), writer.names
