"""How the data meets the layers: a float pass, passes of the quantized model, and each layer solved from its Gram."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from isobit.backend.checked_model import CheckedModel
from isobit.deadline import check_time
from isobit.edits.edit import AddBias, Edit, SetWeights
from isobit.encodings.encoding import Encoding
from isobit.errors import DataError
from isobit.graph.graph import Graph
from isobit.graph.sites import Input, Site, Tensor
from isobit.statistics.histogram import Histogram
from isobit.statistics.layer_rows.rows import ROW_LIMIT, Rows
from isobit.statistics.observer import Request
from isobit.statistics.statistics import Statistics
from isobit.techniques.context import Requests, TechniqueContext
from isobit.techniques.rounding.behind_activation.activated_error import ActivatedError
from isobit.techniques.rounding.behind_activation.activation import activation_behind
from isobit.techniques.rounding.chunks import solve_in_chunks
from isobit.techniques.rounding.layers import Layer, can_absorb, find_layers
from isobit.techniques.rounding.output_error import LARGE, SeenInput, mean_output, output_error
from isobit.techniques.rounding.problem import Problem, Solution
from isobit.techniques.rounding.tables.looked_up import Table, find_tables
from isobit.techniques.rounding.tables.table_sums import mean_requests, search_tables
from isobit.techniques.technique import TechniqueReport

#: About so many rows for each column of a layer's weight: more rows hardly change its second moments.
_ROWS_PER_COLUMN = 32
_FEWEST_ROWS = 2048

#: Where the rows of a layer take more bytes than the first number there are `_FEW_PER_COLUMN` for each column, and
#: never more bytes than the second.
_BYTES, _MOST_BYTES = 32 << 20, 64 << 20
_FEW_PER_COLUMN = 8


@dataclass(frozen=True)
class Procedure:
    """What the rounding techniques share.

    Fast, the default: one pass of the float model for the activations' ranges and `sweeps` passes of the quantized one,
    whose layers are rounded to nearest in the first sweep and as the sweep before left them in the others. Each layer
    is rounded towards the output of its float weight on the quantized model's inputs: only its own error is corrected.

    `sequential`: layer after layer, one pass for those of one input, from what the rounded layers before them give, and
    towards the float layer's output on the float model's inputs: the remaining errors of earlier layers are corrected
    as well, as far as the data teaches it (`isobit.techniques.rounding.reconstruction`).

    Layers are taken in groups whose rows fit into `memory` bytes, each group with passes of its own.
    `correct_bias` lets each layer's bias take up the mean of its error.
    `activation_aware` makes the error behind each layer's activation function known, which only AdaRound asks for.
    """

    sweeps: int = 1
    sequential: bool = False
    correct_bias: bool = True
    damping: float | None = None
    rows: int = ROW_LIMIT
    memory: int = 1 << 29
    activation_aware: bool = False
    scales: str = "searched"

    @classmethod
    def of(cls, technique: object) -> Procedure:
        """The procedure of a technique, by the settings that it shares."""
        names = [setting.name for setting in fields(cls) if hasattr(technique, setting.name)]
        return cls(**{name: getattr(technique, name) for name in names})

    def limit(self, layer: Layer) -> int:
        """Rows kept of each input of a layer: many for each column, fewer where they take much memory."""
        patches = layer.patches
        row = 4 * patches.groups * patches.columns * len(layer.readers)
        enough = min(self.rows, max(_FEWEST_ROWS, _ROWS_PER_COLUMN * patches.columns))
        few = min(_FEW_PER_COLUMN * patches.columns, _MOST_BYTES // row)
        affordable = self.memory // (2 * row)  # what is left is for working on them
        return max(1, min(enough, max(_BYTES // row, few), affordable))

    def cost(self, layer: Layer) -> int:
        """Bytes of a layer's rows."""
        patches = layer.patches
        return 4 * self.limit(layer) * patches.groups * patches.columns * len(layer.readers)

    def groups(self, layers: Sequence[Layer], seen: Mapping[str, int] | None = None) -> list[list[Layer]]:
        """The layers in order, cut where the memory is full; `seen` are the rows that the data has, by layer's name."""
        groups: list[list[Layer]] = []
        used, known = 0, set[Hashable]()
        for layer in layers:
            limit = self.limit(layer)
            keys = {(layer.rows_of(name), limit) for name in layer.readers}
            each = self.cost(layer) // len(layer.readers) * min(limit, (seen or {}).get(layer.name, limit)) // limit
            if not groups or used + each * len(keys - known) > self.memory:
                groups.append([])
                used, known = 0, set()
            groups[-1].append(layer)
            used, known = used + each * len(keys - known), known | keys
        return groups

    def empty_rows(self, layers: Iterable[Layer]) -> dict[str, Rows]:
        """Empty reducers of the inputs of each layer's readers, by reader: one for all that read the same."""
        shared: dict[Hashable, Rows] = {}
        rows = {}
        for layer in layers:
            limit = self.limit(layer)
            for name, patches in layer.readers.items():
                rows[name] = shared.setdefault((layer.rows_of(name), limit), Rows(patches, limit))
        return rows

    def requests(self, context: TechniqueContext) -> Requests:
        """What can be observed beforehand: the ranges, and in the fast mode the rows of all layers, if they fit."""
        layers, _ = find_layers(context.graph, context.plan)
        groups = self.groups(layers)
        means = list(self.table_means(context).values())
        if self.sequential or len(groups) != 1:
            return Requests(means, ranges=bool(layers))
        return Requests(means, ranges=True, quantized=_requests(self.empty_rows(layers), "after"))

    def table_means(self, context: TechniqueContext) -> dict[str, Request]:
        """What tells which rows of tables are read, by table, where others can make up for these."""
        searched = self.scales == "searched"
        return mean_requests(context.graph, find_tables(context.graph, context.plan)) if searched else {}


@dataclass(frozen=True, eq=False)
class Solved:
    """A layer with its new weight and biases; errors are shares of the output's power, nearest rounding beside it."""

    layer: Layer
    encoding: Encoding
    weight: NDArray[np.float32]
    biases: dict[str, NDArray[np.float32]]
    note: str
    nearest_error: float
    error: float


Solve = Callable[[Problem], Solution]

#: Given the quantized copy and the layers that are solved, says which of these it has solved better since.
Refine = Callable[[CheckedModel, Mapping[str, Solved]], Mapping[str, Solved]]


@dataclass(eq=False)
class _Run:
    """One application of a technique."""

    name: str
    context: TechniqueContext
    procedure: Procedure
    solve: Solve
    refine: Refine | None = None
    reference: dict[str, Rows] = field(default_factory=dict)
    solved: dict[str, Solved] = field(default_factory=dict)
    last_input: SeenInput | None = None
    tables: dict[str, Table] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model = self.context.model

    def fast(self, groups: list[list[Layer]]) -> None:
        for sweep in range(self.procedure.sweeps):
            copy = self._copy() if sweep else None
            solved: list[Solved] = []
            for group in groups:
                rows = self._rows(group, copy, keep=len(groups) == 1)
                for layer in self.context.each(group, "layers"):
                    solved.append(self._solve(layer, rows))
                    for reader in layer.readers:
                        del rows[reader]
            self.solved = {item.layer.weight: item for item in solved}

    def _rows(self, group: list[Layer], copy: CheckedModel | None, *, keep: bool) -> dict[str, Rows]:
        """What the quantized model shows of the inputs of these layers, by reader."""
        rows = self.procedure.empty_rows(group)
        requests = _requests(rows, "after")
        if copy is not None:
            self.context.observe_copy(copy, requests)
            return rows
        observed = self.context.observe(Requests(ranges=True, quantized=requests), keep=keep).quantized
        seen = dict(zip(_distinct(rows), observed, strict=True))
        return {name: seen[id(empty)] for name, empty in rows.items()}

    def sequential(self, groups: list[list[Layer]]) -> None:
        self.context.require_passes(2)
        copy, count = None, sum(map(len, groups))
        for group in groups:
            self.reference = self.procedure.empty_rows(group)
            self.context.observe(Requests(_requests(self.reference, "before"), ranges=True), keep=False)
            copy = copy or self._copy()
            for _, siblings in groupby(group, self._inputs):
                together = list(siblings)
                rows = self.procedure.empty_rows(together)
                self.context.observe_copy(copy, _requests(rows, "after"), f"after {len(self.solved)} of {count} layers")
                solved = [self._solve(layer, rows) for layer in together]
                self.solved.update({item.layer.weight: item for item in solved})
                self._write(copy, solved)
                better = self.refine(copy, self.solved) if self.refine is not None else {}
                if better:
                    self.solved.update(better)
                    self._write(copy, better.values())

    def _inputs(self, layer: Layer) -> list[str | None]:
        """The tensors that meet a layer's weight: what reads the same ones can be solved from one pass."""
        return [self.model.graph.node(name).input(0) for name in layer.readers]

    def _copy(self) -> CheckedModel:
        """A copy with every quantizer of the plan, and the weights as far as they are solved."""
        copy = self.model.copy()
        copy.edit(self.table_edits())
        self._write(copy, self.solved.values())
        return copy

    def _write(self, copy: CheckedModel, solved: Iterable[Solved]) -> None:
        """Give a copy these weights and biases, and the encodings of all that is solved."""
        edits = _edits(copy.graph, solved)
        if edits:
            copy.edit(edits)
        copy.set_quantizers(self.context.encodings(copy, self.encodings()))

    def _solve(self, layer: Layer, rows: dict[str, Rows]) -> Solved:
        check_time()
        weight = self.model.weight(layer.weight)
        centered = self.procedure.correct_bias and all(can_absorb(self.model.graph, name) for name in layer.readers)
        matrix = layer.patches.matrix(weight)
        seen = {name: (rows[name], self.reference.get(name)) for name in layer.readers}
        inputs = self._inputs_seen(list(seen.values()), centered=centered)
        try:
            objective = output_error(layer, matrix, inputs, self.procedure.damping)
        except DataError as fault:
            raise DataError(f"input of {' and '.join(map(repr, layer.readers))}: {fault}") from fault
        activated = self._activated(layer, matrix, rows, centered, objective.damping)
        problem = Problem(layer, weight, objective, activated)
        integers, encoding = solve_in_chunks(problem, self.solve)
        rounded = np.asarray(encoding.dequantize(integers.reshape(weight.shape)), np.float32)
        biases = {}
        for name, (x, r) in seen.items() if centered else ():
            moved = mean_output(matrix, x if r is None else r) - mean_output(layer.patches.matrix(rounded), x)
            bias = self.model.graph.node(name).input(2)
            old = 0.0 if bias is None else self.model.weight(bias).astype(np.float64)
            biases[name] = np.asarray(old + moved, np.float32)
        nearest = problem.min_max().fake_quantize(weight)
        nearest_error, error = (problem.share(layer.patches.matrix(value)) for value in (nearest, rounded))
        note = ""
        count = sum(len(x) for x, _ in seen.values())
        if count < min(layer.patches.columns, LARGE):
            note = (
                f"{layer.name}: {count} rows of data for {layer.patches.columns} weights a channel do not "
                "determine them all; what they leave open is rounded near the float weight (use more samples)"
            )
        return Solved(layer, encoding, rounded, biases, note, nearest_error, error)

    def _inputs_seen(self, seen: list[tuple[Rows, Rows | None]], *, centered: bool) -> SeenInput:
        """What was seen, with all that the layer before has worked out of it if that read the same."""
        last = self.last_input
        same = last is not None and last.centered == centered and list(last.seen) == seen
        if last is None or not same:
            last = self.last_input = SeenInput(seen, centered)
        return last

    def _activated(
        self, layer: Layer, matrix: NDArray[np.float32], rows: dict[str, Rows], centered: bool, damping: float
    ) -> ActivatedError | None:
        if not self.procedure.activation_aware or len(layer.readers) > 1:
            return None
        node = self.model.graph.node(layer.name)
        activation = activation_behind(self.model.graph, node, self.model.weight)
        name, bias = node.input(2), np.zeros(matrix.shape[:2])
        if activation is None or (name is not None and name not in self.model.graph.weights):
            return None
        if name is not None:
            bias = self.model.weight(name).astype(np.float64).reshape(bias.shape)
        reference = self.reference.get(layer.name)
        return ActivatedError.of(
            activation,
            rows[layer.name].values,
            None if reference is None else reference.values,
            matrix,
            bias,
            centered=centered,
            damping=damping,
        )

    def search_tables(self, *, needs_passes: bool) -> None:
        """Choose the scales of tables that are looked up, and the values of those that make up for others."""
        requests, known = self.procedure.table_means(self.context), self.procedure.requests(self.context)
        means = {}
        if requests and self.context.can_observe(known):
            if needs_passes and not known.quantized:
                self.context.require_passes(2)
            means = dict(zip(requests, self.context.observe(known).float, strict=True))
        self.tables = search_tables(self.model, find_tables(self.model.graph, self.context.plan), means)

    def table_edits(self) -> list[Edit]:
        """The edits that write the tables whose values changed."""
        values = {name: table.values for name, table in self.tables.items() if table.values is not None}
        return [SetWeights(values)] if values else []

    def encodings(self) -> dict[Site, Encoding]:
        """The encodings of the solved weights and of tables, to be frozen."""
        tables = {table.placement.site: table.encoding for table in self.tables.values()}
        return tables | {solved.layer.placement.site: solved.encoding for solved in self.solved.values()}

    def report(self, left: dict[str, str]) -> TechniqueReport:
        """What was done, layer by layer."""
        layers = [
            f"{weight}: error of the output {solved.nearest_error:.3g} -> {solved.error:.3g} of its power"
            for weight, solved in self.solved.items()
        ]
        tables = [
            f"{name}: error of the rows {table.plain_error:.3g} -> {table.error:.3g} of their power"
            for name, table in self.tables.items()
        ]
        changed = (*tables, *layers)
        notes = tuple(solved.note for solved in self.solved.values() if solved.note)
        return TechniqueReport(self.name, changed, left, self.encodings(), notes)


def round_weights(
    name: str,
    context: TechniqueContext,
    procedure: Procedure,
    solve: Solve,
    *,
    refine: Refine | None = None,
) -> TechniqueReport:
    """Round every weight of the plan that can be, write the values, and return the encodings that they are of.

    Tables that are looked up get the scales of least error where scales are `searched`; they keep their values, but for
    those that are added up and make up for each other (`isobit.techniques.rounding.tables.table_sums`). In the
    sequential mode `refine` is asked after each step, and the layers that follow are solved for what it gives.
    Raises DataError for data that is missing, serves fewer passes than are needed, or holds NaN or infinity.
    """
    layers, left = find_layers(context.graph, context.plan)
    run = _Run(name, context, procedure, solve, refine)
    if procedure.scales == "searched":
        run.search_tables(needs_passes=bool(layers))
    left = {weight: why for weight, why in left.items() if weight not in run.tables}
    if not layers:
        context.model.edit(run.table_edits())
        return run.report(left)
    groups = procedure.groups(layers)
    if len(groups) > 1:  # there may be fewer rows than would be kept
        groups = procedure.groups(layers, _rows_there(layers, context.observe_ranges(further_passes=1)))
    if procedure.sequential:
        run.sequential(groups)
    else:
        run.fast(groups)
    context.model.edit([*run.table_edits(), *_edits(context.graph, run.solved.values())])
    return run.report(left)


def _rows_there(layers: Iterable[Layer], ranges: Statistics) -> dict[str, int]:
    """How many rows the data has for each layer without a kernel, where its input was seen, by the layer's name."""
    rows = {}
    for layer in layers:
        tensor, _ = layer.sources[layer.name]
        reducers = [ranges.get(site) for site in (Tensor(tensor), Input(layer.name, 0))]
        counts = [reducer.elements for reducer in reducers if isinstance(reducer, Histogram)]
        if counts and not layer.patches.kernel:
            rows[layer.name] = max(1, max(counts) // layer.patches.columns)
    return rows


def _edits(graph: Graph, solved: Iterable[Solved]) -> list[Edit]:
    """The edits that write solved weights and biases."""
    bias_edits: list[Edit] = []
    values = {}
    for solution in solved:
        values[solution.layer.weight] = solution.weight
        for name, bias in solution.biases.items():
            old = graph.node(name).input(2)
            if old is None:
                bias_edits.append(AddBias(name, bias))
            else:
                values[old] = bias
    return [*([SetWeights(values)] if values else []), *bias_edits]


def _requests(rows: Mapping[str, Rows], stage: str) -> list[Request]:
    return [Request(Input(name, 0), rows[name], stage) for name in _distinct(rows).values()]  # type: ignore[arg-type]


def _distinct(rows: Mapping[str, Rows]) -> dict[int, str]:
    """The first reader of each of the reducers, by the reducer's identity, in order."""
    first: dict[int, str] = {}
    for name, reducer in rows.items():
        first.setdefault(id(reducer), name)
    return first
