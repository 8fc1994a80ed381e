"""A part of the simulator's graph as an fx graph of its own, quantizers included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from isobit.backend import Batch
from isobit.errors import ModelError
from isobit.graph import Graph, Tensor
from isobit_torch.program.convert import to_tensor
from isobit_torch.program.fx_nodes import SHAPE, op_name
from isobit_torch.simulate.insert_quantizers import Simulated
from isobit_torch.translate.translate import Translation


class PartGraph:
    """`part`, a part of the neutral graph, on a simulated graph of fx as it is now."""

    def __init__(self, part: Graph, simulated: Simulated, translation: Translation) -> None:
        self.graph = part_graph(simulated, translation, part)
        self.inputs = [(name, part.tensors[name].dtype) for name in part.inputs]
        self._part, self._simulated = part, simulated

    @classmethod
    def of(cls, part: Graph, simulated: Simulated, translation: Translation, last: PartGraph | None) -> PartGraph:
        """That of these: the `last` one where it is."""
        same = last is not None and last._part is part and last._simulated is simulated
        return last if last is not None and same else cls(part, simulated, translation)

    def error(self, wanted: Batch, outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The sum of squared differences of outputs from those wanted."""
        errors = [
            (output - to_tensor(wanted[name]).to(output.device, output.dtype)).square().sum()
            for name, output in outputs.items()
        ]
        return torch.stack(errors).sum()


def part_graph(simulated: Simulated, translation: Translation, part: Graph) -> fx.Graph:
    """What computes the outputs of `part`, in its order, from its inputs, which are the placeholders.

    The graph of fx also computes sizes: those that are taken of tensors outside the part are taken of its inputs, where
    they are called by the same name. Raises ModelError for another one.
    """
    given = [simulated.copies[translation.values[name]] for name in part.inputs]
    wanted = [_behind(simulated, translation, name) for name in part.outputs]
    graph = fx.Graph()
    placed: dict[fx.Node, Any] = {}
    for index, node in enumerate(given):
        placed[node] = graph.placeholder(f"given_{index}")
        placed[node].meta = dict(node.meta)
    needed = _needed(wanted, given)
    for node in simulated.graph.nodes:
        if node in placed or node not in needed:
            continue
        size = _size(node, given)
        if size is None:
            placed[node] = graph.node_copy(node, lambda n: placed[n])
        elif isinstance(size, int):
            placed[node] = size
        else:
            placed[node] = graph.call_function(torch.ops.aten.sym_size.int, (placed[size[0]], size[1]))
    graph.output(tuple(placed[node] for node in wanted))
    return graph


def _behind(simulated: Simulated, translation: Translation, name: str) -> fx.Node:
    """The node of a tensor behind its quantizer."""
    return simulated.after.get(Tensor(name), simulated.copies[translation.values[name]])


def _needed(wanted: list[fx.Node], given: list[fx.Node]) -> set[fx.Node]:
    needed: set[fx.Node] = set()
    waiting = list(wanted)
    while waiting:
        node = waiting.pop()
        if node in needed or node in given:
            continue
        if node.op == "placeholder":
            raise ModelError(f"the input {node.name!r} of the model is needed beside what the part of it is given")
        needed.add(node)
        if _size(node, given) is None:
            waiting += node.all_input_nodes
    return needed


def _size(node: fx.Node, given: list[fx.Node]) -> int | tuple[fx.Node, int] | None:
    """Where a size can be had from what is given: a number, or an axis of a tensor; None for all that is no size."""
    if op_name(node) != "sym_size":
        return None
    source, axis = node.args[:2]
    assert isinstance(source, fx.Node)
    if source in given:
        return None
    shape = source.meta.get(SHAPE)
    assert isinstance(axis, int)
    size = None if shape is None else shape[axis]
    if size is None or isinstance(size, int):
        return size
    return next(
        ((tensor, place) for tensor in given for place, other in enumerate(tensor.meta[SHAPE] or ()) if other == size),
        None,
    )
