"""For backends that run the neutral graph: all of the contract but the framework's part."""

from __future__ import annotations

from isobit.graph_backend.graph_builder import GraphBuilder
from isobit.graph_backend.graph_model import DifferentiableEngine, DifferentiableGraphModel, Engine, GraphModel
from isobit.graph_backend.run_graph import Compute, Tap, run_graph

__all__ = [
    "Compute",
    "DifferentiableEngine",
    "DifferentiableGraphModel",
    "Engine",
    "GraphBuilder",
    "GraphModel",
    "Tap",
    "run_graph",
]
