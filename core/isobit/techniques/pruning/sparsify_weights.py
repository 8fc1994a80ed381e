"""Sparse weights: zeros in a pattern that hardware runs fast, or in a share of all weights; shapes stay.

Source: Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021 (2:4 along the inputs of a layer); the weights
that stay are made up as in `isobit.techniques.pruning.sparse_solver`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from isobit.backend.checked_model import CheckedModel
from isobit.edits.draft import Draft
from isobit.edits.edit import SetWeights
from isobit.graph.graph import Graph, Node
from isobit.statistics.layer_rows.rows import Rows
from isobit.techniques.context import Requests, TechniqueContext
from isobit.techniques.layers.input_rows import input_rows, row_requests
from isobit.techniques.layers.weighted_layer import LAYERS, bias_obstacle, bias_of, groups_of, set_bias, weight_obstacle
from isobit.techniques.low_rank.factorise import NO_DATA
from isobit.techniques.pruning.solved_weights import Moments, matrix_of, power
from isobit.techniques.pruning.sparse_solver import Pattern, masked, sparse
from isobit.techniques.technique import TechniqueReport

#: Inputs of a weight beyond which moments take too much memory.
_MOST_COLUMNS = 8192


@dataclass(frozen=True)
class SparsifyWeights:
    """Set weights of convolutions and linear layers to zero in a pattern, and make the others up for it.

    `pattern` is ``"2:4"``, where two of each four neighbours along the input channels stay, or ``"50%"``, where that
    share of each layer's weights is zero. With data what is zero is chosen by the error of the outputs and made up for,
    without it, or with `data_aware` off, by magnitude. `exclude` are patterns of layers that stay as they are.
    `QuantSim.trainable` keeps the zeros.
    """

    pattern: str = "2:4"
    exclude: Sequence[str] = ()
    data_aware: bool = True

    def __post_init__(self) -> None:
        Pattern.of(self.pattern)

    @property
    def uses_data(self) -> bool:
        """Whether it takes data, where there is some."""
        return self.data_aware

    def requests(self, context: TechniqueContext) -> Requests:
        """The rows of the inputs of all layers that get zeros."""
        return Requests(float=list(row_requests(context.graph, self._measured(context.graph)).values()))

    def apply(self, context: TechniqueContext) -> TechniqueReport:
        """Set the zeros; layers that the pattern does not fit are left, and why."""
        model, graph = context.model, context.graph
        observed = input_rows(context, self._measured(graph))
        draft, changed, left = Draft(graph, model.weight), [], dict[str, str]()
        for node in graph.nodes:
            if node.op not in LAYERS:
                continue
            if (why := self._obstacle(graph, node)) != "":
                left[node.name] = why
                continue
            changed.append(self._sparsified(draft, model, node, observed.get(node.name)))
        if draft.edits:
            model.edit(draft)
        notes = (NO_DATA,) if changed and self.data_aware and not observed else ()
        return TechniqueReport("SparsifyWeights", tuple(changed), left, notes=notes)

    def _measured(self, graph: Graph) -> list[str]:
        if not self.data_aware:
            return []
        return [
            node.name
            for node in graph.nodes
            if node.op in LAYERS
            and not self._obstacle(graph, node)
            and np.prod(graph.weights[node.inputs[1] or ""].shape[1:]) <= _MOST_COLUMNS
        ]

    def _obstacle(self, graph: Graph, node: Node) -> str:
        """Why a layer keeps all of its weights, or an empty text."""
        if any(fnmatchcase(node.name, pattern) for pattern in self.exclude):
            return "left out by exclude"
        if (why := weight_obstacle(graph, node)) != "":
            return why
        inputs, group = graph.weights[node.inputs[1] or ""].shape[1], Pattern.of(self.pattern).group
        if group and inputs % group:
            return f"its {inputs} input channels{' a group' * (groups_of(node) > 1)} are no multiple of {group}"
        return ""

    def _sparsified(self, draft: Draft, model: CheckedModel, node: Node, rows: Rows | None) -> str:
        pattern, name = Pattern.of(self.pattern), node.inputs[1] or ""
        shape = model.graph.weights[name].shape
        order = _by_tap(shape)
        matrix = (
            matrix_of(model, node)
            if rows is not None
            else model.weight(name).astype(np.float64).reshape(1, shape[0], -1)
        )
        new = np.empty_like(matrix)
        if rows is None:
            new[:, :, order] = np.stack([masked(weight[:, order], pattern) for weight in matrix])
        else:
            moments = Moments.of(model, node, rows)
            for number, (second, weight) in enumerate(zip(moments.second, matrix, strict=True)):
                new[number][:, order] = sparse(weight[:, order], second[np.ix_(order, order)], pattern)
            if not bias_obstacle(model.graph, node):
                shift = ((matrix - new) @ moments.mean[:, :, None]).reshape(-1)
                set_bias(draft, node, bias_of(draft, node, shift.size) + shift)
        draft.apply(SetWeights({name: new.reshape(shape).astype(np.float32)}))
        text = f"{node.name}: {np.mean(new == 0):.1%} of its weights are zero"
        if rows is not None and moments.power > 0:
            text += f"; error of the output by its power {power(matrix - new, moments.second) / moments.power:.3g}"
        return text


def _by_tap(shape: Sequence[int]) -> NDArray[np.intp]:
    """The columns of a weight with the input channels of one tap of the kernel side by side."""
    return np.arange(int(np.prod(shape[1:]))).reshape(shape[1], -1).T.reshape(-1)
