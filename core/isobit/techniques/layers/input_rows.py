"""Rows of the inputs of layers with weights, as every technique of compression asks for them: one pass serves all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from isobit.errors import ModelError
from isobit.graph.graph import Graph
from isobit.graph.sites import Input
from isobit.statistics.layer_rows.gram import Gram
from isobit.statistics.layer_rows.patches import Patches
from isobit.statistics.layer_rows.rows import ROW_LIMIT, Rows
from isobit.statistics.observer import Request
from isobit.techniques.context import Requests, TechniqueContext

#: Rows for each column of a weight, and the fewest and the most bytes of the rows of one layer.
_ROWS_PER_COLUMN = 16
_FEWEST_ROWS = 1024
_MOST_BYTES = 64 << 20


def row_requests(graph: Graph, layers: Iterable[str]) -> dict[str, Request]:
    """What must be observed of the float model for `input_grams`, by layer; a layer without rows is left out."""
    requests = {}
    for name in layers:
        node = graph.node(name)
        if node.input(0) not in graph.tensors:
            continue
        try:
            patches = Patches.of(graph, node)
        except ModelError:
            continue
        row = 4 * patches.groups * patches.columns
        limit = min(ROW_LIMIT, max(_FEWEST_ROWS, _ROWS_PER_COLUMN * patches.columns), max(1, _MOST_BYTES // row))
        requests[name] = Request(Input(name, 0), Rows(patches, limit), "before")
    return requests


def input_grams(context: TechniqueContext, layers: Iterable[str]) -> Mapping[str, Gram]:
    """The Grams of the inputs of layers on the float model, by layer; none where there is no data.

    A Gram is (groups, columns, columns), columns in the order of the canonical weight (`Patches`). Raises DataError for
    rows that hold NaN or infinity.
    """
    requests = row_requests(context.graph, layers)
    asked = Requests(float=list(requests.values()))
    if not requests or not context.can_observe(asked):
        return {}
    observed = context.observe(asked).float
    return {name: Gram.of(rows) for name, rows in zip(requests, observed, strict=True) if len(rows)}
