"""Edits of a network, checked here as one transaction and only then applied by a backend.

`plan_edits` works on the neutral graph: it resolves every edit into replacements of nodes and new values of constants,
infers the shapes that follow, and refuses the whole list, naming the blocking node, if anything does not fit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from isobit.canonical.channels import annotate_channels
from isobit.edits.compensation import Compensation, joined
from isobit.edits.edit import (
    AddBias,
    Array,
    Edit,
    EditPlan,
    Insert,
    NewNode,
    ReadWeight,
    Replace,
    SetWeights,
    SliceTogether,
    TrainedWeights,
    Unshare,
    places_of,
)
from isobit.edits.slicing.slice_channels import slice_channels
from isobit.edits.workspace import Workspace
from isobit.errors import EditError, ModelError
from isobit.graph.check_graph import check_graph, check_structure, is_checking
from isobit.graph.graph import Graph

logger = logging.getLogger(__name__)


def plan_edits(graph: Graph, edits: Sequence[Edit], read: ReadWeight) -> EditPlan:
    """Check `edits` in order against `graph`. Raises EditError and changes nothing; `read` gives a constant's value."""
    return Draft.of(graph, read, edits).plan()


class Draft:
    """The edits so far, and the graph and constants as they leave them.

    A technique that edits step by step works on a draft of a model and hands it to `CheckedModel.edit` once, which then
    has nothing to plan again. `start` is the graph that the draft was begun on. `compensations` are what
    edits did to constants for the sake of quantization alone.
    """

    def __init__(self, graph: Graph, read: ReadWeight) -> None:
        self.start = graph
        self.edits: list[Edit] = []
        self.compensations: dict[str, Compensation] = {}
        self._workspace = Workspace(graph, read)

    @classmethod
    def of(cls, graph: Graph, read: ReadWeight, edits: Iterable[Edit]) -> Draft:
        """A draft with these edits. Raises EditError."""
        draft = cls(graph, read)
        for edit in edits:
            draft.apply(edit)
        return draft

    @property
    def graph(self) -> Graph:
        """The graph after the edits so far; shapes are inferred by `plan`."""
        return self._workspace.graph

    def value(self, name: str) -> Array:
        """The value of a constant after the edits so far, canonical. Raises EditError for an unknown name."""
        return self._workspace.value(name)

    def free_name(self, stem: str) -> str:
        """`stem`, or it with a number where the graph has that name already."""
        return self._workspace.free_name(stem)

    def apply(self, edit: Edit) -> None:
        """Add one edit. Raises EditError."""
        before = self._constants(edit)
        try:
            _apply(self._workspace, edit)
        except ModelError as error:
            raise EditError(f"{type(edit).__name__}: {error}") from error
        self.edits.append(edit)
        self._note_compensation(edit, before)
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("edit %d: %s at %s", len(self.edits), type(edit).__name__, ", ".join(places_of(edit)))
        if is_checking():
            check_structure(self.graph, f"the edit {type(edit).__name__}")

    def _constants(self, edit: Edit) -> dict[str, Array]:
        """The values that an edit is about to replace, where it compensates."""
        names = edit.weights if isinstance(edit, SetWeights) and edit.compensates else ()
        return {name: self.value(name) for name in names if name in self.graph.weights}

    def _note_compensation(self, edit: Edit, before: Mapping[str, Array]) -> None:
        if isinstance(edit, AddBias) and edit.compensates:
            name = str(self.graph.node(edit.node).inputs[2])
            self.compensations[name] = Compensation(None, self.value(name))
        elif isinstance(edit, SetWeights) and edit.compensates:
            done = {name: Compensation(before[name], self.value(name)) for name in edit.weights}
            self.compensations = joined(self.compensations, done)
        elif isinstance(edit, SetWeights):  # the new value is that of the float model from now on
            self.compensations = {n: c for n, c in self.compensations.items() if n not in edit.weights}

    def plan(self) -> EditPlan:
        """What the edits come to. Raises EditError where shapes do not fit."""
        workspace = self._workspace
        workspace.infer_shapes()
        graph = annotate_channels(workspace.graph)
        if is_checking():
            check_graph(graph, "edits")
        logger.info("%d edits: %d steps, %d constants", len(self.edits), len(workspace.steps), len(workspace.values))
        return EditPlan(graph, tuple(workspace.steps), dict(workspace.values))


def _apply(workspace: Workspace, edit: Edit) -> None:
    graph = workspace.graph
    if isinstance(edit, Replace):
        workspace.replace_node(graph.node(edit.node), edit.nodes, edit.weights)
    elif isinstance(edit, Insert):
        workspace.insert(edit.site, edit.nodes, edit.weights)
    elif isinstance(edit, SetWeights):
        for name, value in edit.weights.items():
            workspace.value(name)  # EditError for a name that is not a constant
            other_readers = graph.source_readers(name) - {use.node.name for use in graph.uses(name)}
            if other_readers:
                names = ", ".join(sorted(other_readers))
                raise EditError(f"constant {name!r} is also read by {names} in another layout: Unshare it first")
            workspace.set_value(name, value)
    elif isinstance(edit, TrainedWeights):
        for name, value in edit.weights.items():
            workspace.value(name)
            workspace.set_value(name, value)
    elif isinstance(edit, AddBias):
        _add_bias(workspace, edit)
    elif isinstance(edit, Unshare):
        _unshare(workspace, edit)
    else:
        slice_channels(workspace, edit.slices if isinstance(edit, SliceTogether) else (edit,))


def _add_bias(workspace: Workspace, edit: AddBias) -> None:
    node = workspace.graph.node(edit.node)
    if node.op not in ("Conv", "ConvTranspose", "Linear"):
        raise EditError(f"node {node.name!r} ({node.op}) cannot take a bias: only Conv, ConvTranspose and Linear can")
    if node.input(2) is not None:
        raise EditError(f"node {node.name!r} has a bias already, {node.input(2)!r}: use SetWeights")
    name = workspace.free_name(f"{node.name}.bias")
    new = NewNode(node.op, (node.inputs[1], name), node.attributes)
    workspace.replace_node(node, (new,), {name: edit.value})


def _unshare(workspace: Workspace, edit: Unshare) -> None:
    uses = workspace.graph.uses(edit.weight)
    if edit.weight not in workspace.graph.weights or all(use.node.name != edit.node for use in uses):
        raise EditError(f"node {edit.node!r} does not read a constant {edit.weight!r}")
    if len(workspace.graph.source_readers(edit.weight)) == 1:
        raise EditError(f"constant {edit.weight!r} has one reader only, {edit.node!r}")
    node = workspace.graph.node(edit.node)
    name = workspace.free_name(f"{edit.weight}@{edit.node}")
    operands = tuple(name if operand == edit.weight else operand for operand in node.inputs[1:])
    if node.inputs[0] == edit.weight or any(o in workspace.graph.tensors for o in operands):
        raise EditError(f"node {edit.node!r} ({node.op}) reads more than one tensor, so its constant stays shared")
    workspace.replace_node(node, (NewNode(node.op, operands, node.attributes),), {name: workspace.value(edit.weight)})
