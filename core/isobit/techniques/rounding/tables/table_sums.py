"""Tables whose rows are added up, as those of words, positions and segments: a larger one makes up for a small one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from isobit.backend.checked_model import CheckedModel
from isobit.deadline import check_time
from isobit.graph.graph import Graph, Node
from isobit.graph.sites import Tensor
from isobit.placement.plan import Placement
from isobit.statistics.channel_means import ChannelMeans
from isobit.statistics.observer import Request
from isobit.techniques.rounding.tables.looked_up import Table

#: What may be left between the mean of what is read and the mean of rows that explains it, as a share of its size, and
#: how far below 0 a row's share may come out.
_UNEXPLAINED, _BELOW_ZERO = 1e-3, 1e-3

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class TableSum:
    """Tables that are looked up and whose rows are then added up, the one with fewest rows first; and their lookups."""

    lookups: Mapping[str, Node]

    def requests(self, graph: Graph) -> dict[str, Request]:
        """What tells which rows of a table are read, by table: the mean of the rows that are, if columns are enough."""
        passing_on = list(self.lookups.items())[:-1]
        return {
            name: Request(Tensor(lookup.outputs[0]), ChannelMeans())
            for name, lookup in passing_on
            if graph.weights[name].shape[0] <= graph.weights[name].shape[1]
        }

    def solve(
        self, model: CheckedModel, placements: Mapping[str, Placement], means: Mapping[str, ChannelMeans]
    ) -> dict[str, Table]:
        """The tables with their scales; those that others make up for, and that do so, have values on their grids.

        The mean error of a table over the rows that the data reads is a constant in all sums. It is taken from all
        rows of the next larger table before that one is rounded.
        """
        solved: dict[str, Table] = {}
        excess: Floats | None = None  # what the sums have too much of, on average, by the tables that are done
        for name in self.lookups:
            values = model.weight(name)
            wanted = values if excess is None else (values - excess).astype(np.float32)
            table = Table.searched(wanted, placements[name])
            shares = read_shares(values, means[name].mean) if name in means and means[name].count else None
            if excess is not None or shares is not None:
                table = replace(table, values=table.encoding.fake_quantize(wanted))
            solved[name] = table
            if shares is None or table.values is None:
                excess = None
            else:
                own = shares @ (table.values - values.astype(np.float64))
                excess = own if excess is None else excess + own
        return solved


def mean_requests(graph: Graph, tables: Iterable[str]) -> dict[str, Request]:
    """What the sums of these tables ask of the float model, by table."""
    requests: dict[str, Request] = {}
    for added in find_table_sums(graph, tables):
        requests.update(added.requests(graph))
    return requests


def search_tables(
    model: CheckedModel, placements: Mapping[str, Placement], means: Mapping[str, ChannelMeans]
) -> dict[str, Table]:
    """All tables with their scales, those that are added up together; `means` are what is there of what is asked."""
    solved: dict[str, Table] = {}
    for added in find_table_sums(model.graph, placements):
        check_time()
        solved.update(added.solve(model, placements, means))
    for name, placement in placements.items():
        check_time()
        if name not in solved:
            solved[name] = Table.searched(model.weight(name), placement)
    return {name: solved[name] for name in placements}


def find_table_sums(graph: Graph, tables: Iterable[str]) -> list[TableSum]:
    """The sums of two tables and more that are looked up once each, for nothing but that sum."""
    sums: dict[tuple[str, int], dict[str, Node]] = {}
    for name in tables:
        shape, uses = graph.weights[name].shape, graph.uses(name)
        if len(shape) != 2 or len(uses) != 1 or uses[0].node.attributes.get("axis", 0) != 0:
            continue
        lookup = uses[0].node
        sums.setdefault((_sum_of(graph, lookup.outputs[0]), shape[1]), {})[name] = lookup
    by_size = [sorted(found.items(), key=lambda item: graph.weights[item[0]].shape[0]) for found in sums.values()]
    return [TableSum(dict(found)) for found in by_size if len(found) > 1]


def _sum_of(graph: Graph, tensor: str) -> str:
    """The tensor that a tensor ends up in if it is added to others and nothing else reads it."""
    while tensor not in graph.output_tensors:
        uses = graph.uses(tensor)
        if len(uses) != 1 or uses[0].node.op != "Add":
            break
        tensor = uses[0].node.outputs[0]
    return tensor


def read_shares(values: NDArray[np.float32], mean: Floats) -> Floats | None:
    """How often each row is read, as shares, from the mean of what is; None where that does not say it.

    `values` (rows, columns) has no more rows than columns, so that the shares are a least squares problem.
    """
    if mean.shape != values.shape[1:]:
        return None
    exact = values.astype(np.float64)
    shares, _, rank, _ = np.linalg.lstsq(exact.T, mean, rcond=None)
    unexplained = np.linalg.norm(shares @ exact - mean)
    is_certain = rank == len(values) and unexplained <= _UNEXPLAINED * np.linalg.norm(mean)
    return np.asarray(shares, np.float64) if is_certain and shares.min() >= -_BELOW_ZERO else None
