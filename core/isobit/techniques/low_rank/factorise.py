"""Candidates of low-rank factors, and layers replaced by them: the same for every way to split a layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from isobit.backend.checked_model import CheckedModel
from isobit.budget import Candidate, Cost
from isobit.edits.draft import Draft
from isobit.edits.edit import NewNode, Replace
from isobit.errors import FormatError
from isobit.graph.graph import Node
from isobit.graph.multiply_adds import multiply_adds
from isobit.statistics.layer_rows.rows import Rows
from isobit.targets.costs import Costs
from isobit.techniques.context import Requests, TechniqueContext
from isobit.techniques.layers.input_rows import input_rows, row_requests
from isobit.techniques.layers.weighted_layer import bias_of, groups_of
from isobit.techniques.low_rank.factors import Ranks, as_matrix, balanced
from isobit.techniques.low_rank.input_moments import InputMoments
from isobit.techniques.low_rank.split import Split, Splitter, as_groups, obstacle, words
from isobit.techniques.technique import TechniqueReport

NO_DATA = "no data: the error of the weights counts alone, and not that of the outputs"


def check_keep(name: str, keep: float) -> None:
    """Raise FormatError where `keep` is no share."""
    if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 < keep <= 1:
        raise FormatError(f"{name}: keep must be above 0 and at most 1, not {keep}")


@dataclass(frozen=True, eq=False)
class LowRank:
    """What the techniques of low rank share: how a layer is split, of which ops, and which ranks are asked for.

    `keep` is the share of each layer's multiply-accumulates; at 1 nothing changes but the layers of `ranks`.
    """

    name: str
    split: Splitter
    kinds: Iterable[str]
    keep: float
    ranks: Mapping[str, Ranks]
    data_aware: bool

    def requests(self, context: TechniqueContext) -> Requests:
        """The rows of the inputs of all layers that may be split, or that are asked for."""
        graph = context.graph
        layers = [
            node.name
            for node in graph.nodes
            if node.op in frozenset(self.kinds)
            and not obstacle(graph, node)
            and (self.keep < 1 or not self.ranks or node.name in self.ranks)
        ]
        return Requests(float=list(row_requests(graph, layers).values())) if self.data_aware else Requests()

    def _rows(self, context: TechniqueContext) -> Mapping[str, Rows]:
        sites = [request.site for request in self.requests(context).float]
        return input_rows(context, [site.node for site in sites]) if sites else {}  # type: ignore[union-attr]

    # --- what could be done ----------------------------------------------------------------------------------------

    def candidates(self, context: TechniqueContext, method: str, multiple: int, table: Costs | None) -> list[Candidate]:
        """Each layer with the ranks that it may have, or why it has none."""
        model, rows = context.model, self._rows(context)
        found = []
        for node in model.graph.nodes:
            if node.op not in frozenset(self.kinds):
                continue
            layer = self._split_of(model, node, table)
            if isinstance(layer, str):
                found.append(Candidate(node.name, method, (node.name,), Cost(), why=layer))
                continue
            moments = InputMoments.of(rows.get(node.name), layer.unknowns)
            power = moments.power(as_matrix(as_groups(model.weight(node.inputs[1] or ""), groups_of(node))))
            choices = layer.choices(moments, multiple, power)
            why = "" if choices else "no rank of it is cheaper" + (f" in multiples of {multiple}" * (multiple > 1))
            if not choices and not power > 0:
                why = "its output never changes"
            found.append(
                Candidate(node.name, method, (node.name,), layer.whole, choices, why, from_data=moments.is_known)
            )
        return found

    def _split_of(self, model: CheckedModel, node: Node, table: Costs | None = None) -> Split | str:
        reason = obstacle(model.graph, node)
        return reason or self.split(model.graph, node, model.weight(node.inputs[1] or ""), table)

    # --- what is done ----------------------------------------------------------------------------------------------

    def apply(self, context: TechniqueContext) -> TechniqueReport:
        """Replace every layer that gets cheaper, or that `ranks` names, by those of its factors.

        Raises FormatError for an unknown layer or rank.
        """
        model = context.model
        layers = {node.name: node for node in model.graph.nodes if node.op in frozenset(self.kinds)}
        unknown = next((layer for layer in self.ranks if layer not in layers), None)
        if unknown is not None:
            *some, last = sorted(self.kinds)
            kinds = f"{', '.join(some)} or {last}" if some else last
            raise FormatError(f"{self.name}: ranks names {unknown!r}, which is no {kinds} of the model")
        splits, left = self._splits(model, layers)
        needed = {name: ranks for name, ranks in self.ranks.items() if name in splits}
        rows = self._rows(context) if splits else {}
        draft, changed = Draft(model.graph, model.weight), []
        macs = kept_macs = float(sum(multiply_adds(model.graph, node, of_one=True) or 0 for node in layers.values()))
        for name, split in context.each(list(splits.items()), "layers"):
            moments = InputMoments.of(rows.get(name), split.unknowns)
            ranks = needed.get(name) or self._ranks_for(model, layers[name], split, moments)
            if isinstance(ranks, str):
                left[name] = ranks
                continue
            error = _replace(draft, model, layers[name], split, moments, ranks)
            share = split.cost(ranks).macs / max(split.whole.macs, 1.0)
            kept_macs += split.cost(ranks).macs - split.whole.macs
            text = f"{name}: rank {words(ranks)} of {words(split.full)}, {share:.1%} of its multiply-accumulates"
            changed.append(text + (f", error of the output {error:.3g} of its power" if moments.is_known else ""))
        if draft.edits:
            model.edit(draft)
        notes = (
            [f"multiply-accumulates of all layers: {kept_macs / macs:.1%} of {macs:.4g} a sample"] if changed else []
        )
        if changed and self.data_aware and not rows:
            notes.append(NO_DATA)
        if self.keep == 1 and not self.ranks:
            notes.append("keep is 1 and no ranks are given: nothing changes")
        return TechniqueReport(self.name, tuple(changed), left, notes=tuple(notes))

    def _splits(self, model: CheckedModel, layers: Mapping[str, Node]) -> tuple[dict[str, Split], dict[str, str]]:
        splits, left = {}, {}
        for node in layers.values():
            split = self._split_of(model, node)
            if isinstance(split, str):
                if node.name in self.ranks:
                    raise FormatError(f"{self.name}: {node.name!r} cannot be split: {split}")
                left[node.name] = split
                continue
            ranks = self.ranks.get(node.name)
            if ranks is not None and (
                len(ranks) != len(split.full)
                or any(not 1 <= rank <= full for rank, full in zip(ranks, split.full, strict=True))
            ):
                raise FormatError(
                    f"{self.name}: rank {words(ranks)} of {node.name!r} is not in 1 to {words(split.full)}"
                )
            if ranks is None and self.keep == 1:
                left[node.name] = "keep is 1: it stays whole"
                continue
            splits[node.name] = split
        return splits, left

    def _ranks_for(self, model: CheckedModel, node: Node, split: Split, moments: InputMoments) -> Ranks | str:
        """The ranks of least error within `keep`, or why there are none."""
        limit = self.keep * split.whole.macs
        if split.cost(split.full).macs <= limit:
            return f"all ranks together cost less than {self.keep:.0%} of its multiply-accumulates"
        power = moments.power(as_matrix(as_groups(model.weight(node.inputs[1] or ""), groups_of(node))))
        if not power > 0:
            return "its output never changes"
        fitting = [choice for choice in split.choices(moments, 1, power) if choice.cost.macs <= limit]
        if not fitting:
            return f"one rank costs more than {self.keep:.0%} of its multiply-accumulates"
        return tuple(min(fitting, key=lambda choice: (choice.error, choice.cost.macs)).settings["ranks"])


def _replace(draft: Draft, model: CheckedModel, node: Node, split: Split, moments: InputMoments, ranks: Ranks) -> float:
    """Put the factors in a layer's place; the error of its output as a share of its power."""
    whole = as_groups(model.weight(node.inputs[1] or ""), split.groups)
    factors = split.factors(moments, ranks[:1], True)
    error = factors.error(ranks) / max(moments.power(as_matrix(whole)), float(np.finfo(np.float64).tiny))
    parts = split.parts(balanced(factors.weights(ranks)))
    # beside the weight, not below it: in PyTorch that is where a parameter of the same module can stand
    names = [draft.free_name(f"{node.inputs[1]}_{number}") for number in range(len(parts))]
    weights = {name: part.weight for name, part in zip(names, parts, strict=True)}
    bias = node.inputs[2:3]
    if moments.mean is not None:
        bias = (draft.free_name(f"{node.name}.bias" if bias in ((), (None,)) else f"{bias[0]}_0"),)
        missing = (as_matrix(whole) - factors.product(ranks)) @ moments.mean[:, :, None]
        weights[bias[0] or ""] = np.asarray(bias_of(draft, node, missing.size) + missing.reshape(-1), np.float32)
    operands: list[tuple[str | None, ...]] = [(name,) for name in names]
    operands[-1] = (names[-1], *bias)
    chain = tuple(NewNode(part.op, operand, part.attributes) for operand, part in zip(operands, parts, strict=True))
    draft.apply(Replace(node.name, chain, weights))
    return error
