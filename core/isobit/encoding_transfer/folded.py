"""A graph with its batch norms folded; the model that it came from stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from isobit.backend.checked_model import CheckedModel
from isobit.edits.draft import Draft
from isobit.edits.edit import Replaced
from isobit.encoding_transfer.content import Side
from isobit.graph.graph import Graph
from isobit.techniques.context import TechniqueContext
from isobit.techniques.fold_batch_norms import FoldBatchNorms

Array = NDArray[Any]


def fold(side: Side) -> tuple[Side, Mapping[str, str]]:
    """The side after `FoldBatchNorms`, and the new name of each tensor whose node went."""
    edited = _EditedGraph(side)
    FoldBatchNorms().apply(TechniqueContext(cast(CheckedModel, edited)))  # it uses no more of a model
    return Side(edited.graph, edited.weight), edited.renamed


class _EditedGraph:
    """A graph and its constants, edited without any framework's model."""

    def __init__(self, side: Side) -> None:
        self.graph: Graph = side.graph
        self.renamed: dict[str, str] = {}
        self._read = side.read
        self._changed: dict[str, Array] = {}

    def weight(self, name: str) -> Array:
        """A constant, canonical."""
        return self._changed[name] if name in self._changed else np.asarray(self._read(name))

    def edit(self, draft: Draft) -> None:
        """Apply edits to the graph and to the values beside it."""
        plan = draft.plan()
        for step in plan.steps:
            if isinstance(step, Replaced):
                source = next((name for name in step.old.inputs if name in self.graph.tensors), None)
                result = step.nodes[-1].outputs[0] if step.nodes else source
                if result is not None and result != step.old.outputs[0]:
                    self.renamed[step.old.outputs[0]] = result
        self.graph = plan.graph
        self._changed.update(plan.weights)
