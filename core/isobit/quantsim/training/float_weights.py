"""Weights of the user's float model for a simulator whose batch norms were folded: they are folded on the way in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.backend.checked_model import CheckedModel
from isobit.backend.optional import LoadsFloatWeights
from isobit.edits.compensation import Compensation
from isobit.edits.draft import Draft
from isobit.edits.edit import (
    AddBias,
    Edit,
    Insert,
    ReadWeight,
    Replace,
    SetWeights,
    TrainedWeights,
    Unshare,
    places_of,
)
from isobit.errors import ModelError
from isobit.graph.graph import Graph
from isobit.techniques.fold_batch_norms import FoldBatchNorms

Array = NDArray[Any]

_OTHERWISE = (
    "load them into your model, open it anew, apply the same techniques, and give it the grids by "
    "load_encodings(sim.encodings)"
)


@dataclass(frozen=True, eq=False)
class Folding:
    """How weights from before the folding are folded: as FoldBatchNorms does it, whatever their values.

    `edits` are all since the graph was `opened`, `compensations` what they did for the sake of quantization alone: that
    is added to the folded biases too, as it is added to trained ones.
    """

    opened: Graph | None
    edits: Sequence[Edit]
    compensations: Mapping[str, Compensation]

    def __call__(self, read: ReadWeight) -> dict[str, Array]:
        """The constants of the graph now that folding has made or changed, from those as opened, all canonical.

        Raises ModelError where the model was changed in other ways too, and where these weights fold otherwise.
        """
        if self.opened is None:
            raise ModelError(f"weights from before folding do not load beside an exchanged adapter: {_OTHERWISE}")
        reasons = []
        for technique in (FoldBatchNorms(), FoldBatchNorms(scale_and_shift=False), None):
            draft = Draft(self.opened, read)
            left = {} if technique is None else technique.fold(draft).left
            others = _without(self.edits, draft.edits)
            unlike = [edit.node for edit in self.edits if isinstance(edit, Replace) and edit.node in left]
            odd: str | None = "they fold otherwise than the weights here did"
            if unlike:
                odd = f"{odd}: the batch norm {unlike[0]!r} does not fold with these values"
            elif others is not None:
                odd = self._repeat(others, draft)
            if odd is None:
                return dict(draft.plan().weights)
            reasons.append(odd)
        raise ModelError(f"weights from before folding do not load here, as {reasons[0]}: {_OTHERWISE}")

    def _repeat(self, edits: Sequence[Edit], draft: Draft) -> str | None:
        """Do the edits beside the folding on a draft as far as they only make up for quantization; else says why not.

        What was done and taken back since needs nothing.
        """
        own: set[str] = set()  # constants that were given something to make up
        for edit in edits:
            if isinstance(edit, Unshare):
                draft.apply(edit)
            elif isinstance(edit, AddBias) and edit.compensates:
                draft.apply(AddBias(edit.node, np.zeros_like(edit.value)))
                own.add(str(draft.graph.node(edit.node).inputs[2]))
            elif isinstance(edit, SetWeights) and (edit.compensates or own.issuperset(edit.weights)):
                own.update(edit.weights)
            else:
                return f"a technique beside FoldBatchNorms has changed {_place(edit)} too"
        there = {name: done for name, done in self.compensations.items() if name in draft.graph.weights}
        if there:
            draft.apply(SetWeights({name: _compensated(draft.value(name), done) for name, done in there.items()}))
        return None


def let_float_weights_in(model: CheckedModel) -> None:
    """Let a native model that can take in weights of the float model, with the edits as they are now."""
    if isinstance(model.inner, LoadsFloatWeights):
        folding = Folding(model.opened, tuple(model.edit_log), dict(model.compensations))
        model.inner.fold_loaded(folding)


def _without(edits: Sequence[Edit], folding: Sequence[Edit]) -> list[Edit] | None:
    """The edits beside a folding and training, or None where they have no such folding in them."""
    others: list[Edit] = []
    left = list(folding)
    for edit in edits:
        if left and _kind(edit) == _kind(left[0]):
            left.pop(0)
        elif not isinstance(edit, TrainedWeights):
            others.append(edit)
    return None if left else others


def _kind(edit: Edit) -> tuple[object, ...]:
    """What an edit does, whatever the values."""
    chain = tuple((node.op, node.operands) for node in edit.nodes) if isinstance(edit, Replace | Insert) else ()
    compensates = isinstance(edit, SetWeights | AddBias) and edit.compensates
    return type(edit), _place(edit), chain, compensates


def _place(edit: Edit) -> str:
    return ", ".join(map(repr, places_of(edit)))


def _compensated(value: Array, done: Compensation) -> Array:
    before = np.zeros_like(done.after) if done.before is None else done.before
    return np.asarray(value + (done.after - before), done.after.dtype)
