"""Rows of the inputs of layers with weights, as every technique of compression asks for them: one pass serves all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from isobit.errors import ModelError
from isobit.graph.graph import Graph, Node
from isobit.graph.ops import WEIGHTED
from isobit.graph.sites import Input
from isobit.statistics.layer_rows.patches import Patches
from isobit.statistics.layer_rows.rows import ROW_LIMIT, Rows
from isobit.statistics.observer import Request
from isobit.techniques.context import Requests, TechniqueContext

#: Rows for each column of a weight and the fewest of them, where they fit.
_ROWS_PER_COLUMN = 16
_FEWEST_ROWS = 4096

#: The most bytes of the rows of one layer, also where these are fewer rows than the second number, and of all layers of
#: a network together.
_MOST_BYTES, _FEW_ROWS, _FEW_BYTES = 64 << 20, 1024, 256 << 20
_ALL_BYTES = 1 << 30


def row_requests(graph: Graph, layers: Iterable[str]) -> dict[str, Request]:
    """What must be observed of the float model for `input_rows`, by layer; a layer without rows is left out."""
    geometries = {node.name: patches for node in graph.nodes if (patches := _patches(graph, node)) is not None}
    wanted = {name: row_limit(patches) for name, patches in geometries.items()}
    # shared among all layers that there are, not those that are asked for: so every technique asks for the same rows
    share = min(1.0, _ALL_BYTES / max(1, sum(wanted[name] * _row(patches) for name, patches in geometries.items())))
    return {
        name: Request(Input(name, 0), Rows(geometries[name], max(1, int(wanted[name] * share))), "before")
        for name in layers
        if name in geometries
    }


def _patches(graph: Graph, node: Node) -> Patches | None:
    if node.op not in WEIGHTED or node.input(0) not in graph.tensors:
        return None
    try:
        return Patches.of(graph, node)
    except ModelError:
        return None


def _row(patches: Patches) -> int:
    """Bytes of one row."""
    return 4 * patches.groups * patches.columns


def row_limit(patches: Patches) -> int:
    """How many rows of one layer are enough, and fit."""
    enough = max(_FEWEST_ROWS, _ROWS_PER_COLUMN * patches.columns)
    few = min(_FEW_ROWS, _FEW_BYTES // _row(patches))
    return max(1, min(ROW_LIMIT, enough, max(few, _MOST_BYTES // _row(patches))))


def input_rows(context: TechniqueContext, layers: Iterable[str]) -> Mapping[str, Rows]:
    """Rows of the inputs of layers on the float model, by layer; none where there is no data."""
    requests = row_requests(context.graph, layers)
    asked = Requests(float=list(requests.values()))
    if not requests or not context.can_observe(asked):
        return {}
    observed = context.observe(asked).float
    return {name: rows for name, rows in zip(requests, observed, strict=True) if len(rows)}
