"""The neutral graph of a model: nodes in ONNX's vocabulary, sites that can be quantized, layouts of constants."""

from __future__ import annotations

from isobit.graph.adapters import Adapter, adapter_of, find_adapters
from isobit.graph.between import between
from isobit.graph.graph import Dimension, Graph, Node, Shape, TensorInfo, Use, WeightInfo
from isobit.graph.isomorphism import differences
from isobit.graph.layout import Blocks, Layout, Permute, Take, View, conv_transpose_layout, to_canonical, to_native
from isobit.graph.records import graph_from_record, graph_to_record
from isobit.graph.sites import Input, Site, Tensor, Weight, site_key, site_of

__all__ = [
    "Adapter",
    "Blocks",
    "Dimension",
    "Graph",
    "Input",
    "Layout",
    "Node",
    "Permute",
    "Shape",
    "Site",
    "Take",
    "Tensor",
    "TensorInfo",
    "Use",
    "View",
    "Weight",
    "WeightInfo",
    "adapter_of",
    "between",
    "conv_transpose_layout",
    "differences",
    "find_adapters",
    "graph_from_record",
    "graph_to_record",
    "site_key",
    "site_of",
    "to_canonical",
    "to_native",
]
