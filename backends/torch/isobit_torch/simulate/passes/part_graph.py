"""A part of the neutral graph on the simulator's graph, quantizers included: run by itself, or descended in."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn

from isobit.backend import Batch
from isobit.errors import ModelError
from isobit.graph import Graph, Tensor
from isobit_torch.program.convert import to_tensor
from isobit_torch.program.fx_nodes import SHAPE, op_name
from isobit_torch.simulate.insert_quantizers import Simulated, is_quantizer
from isobit_torch.translate.translate import Translation


class PartGraph:
    """What computes the outputs of `part` from its inputs, which are given in front of their quantizers.

    Values that are given are not written to.
    """

    def __init__(self, root: nn.Module, simulated: Simulated, translation: Translation, part: Graph) -> None:
        self.inputs = [(name, part.tensors[name].dtype) for name in part.inputs]
        self._root, self._simulated, self._part = root, simulated, part
        self._nodes = {name: simulated.copies[translation.values[name]] for name in (*part.inputs, *part.outputs)}

    @cached_property
    def behind(self) -> fx.Graph:
        """A graph whose outputs are those of the part, in its order, behind their quantizers. Raises ModelError."""
        return self._graph(
            [self._simulated.after.get(Tensor(name), self._nodes[name]) for name in self._part.outputs], frozenset()
        )

    @cached_property
    def _before(self) -> fx.Interpreter:
        outputs = [self._nodes[name] for name in self._part.outputs]
        runner = fx.Interpreter(self._root, graph=self._graph(outputs, frozenset(outputs)))
        runner.extra_traceback = False  # of an error, the user is shown the first line alone
        return runner

    def run(self, *given: torch.Tensor) -> dict[str, torch.Tensor]:
        """The outputs by name, in front of their quantizers. Raises ModelError, and what the operations raise."""
        return dict(zip(self._part.outputs, self._before.run(*given), strict=True))

    def error(self, wanted: Batch, outputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The sum of squared differences of outputs from those wanted."""
        errors = [
            (output - to_tensor(wanted[name]).to(output.device, output.dtype)).square().sum()
            for name, output in outputs.items()
        ]
        return torch.stack(errors).sum()

    def _graph(self, wanted: list[fx.Node], kept: frozenset[fx.Node]) -> fx.Graph:
        """What leads from the inputs, which are the placeholders, to the nodes `wanted`.

        The simulator's graph also computes sizes: those that are taken of tensors outside the part are taken of its
        inputs, where they are called by the same name. A quantizer may overwrite what it reads: so what is given, and
        what is to be `kept` as it was, is copied in front of one. Raises ModelError where an input is missing.
        """
        given = [self._nodes[name] for name in self._part.inputs]
        graph = fx.Graph()
        placed: dict[fx.Node, Any] = {}
        results: dict[fx.Node, fx.Node] = {}

        def place(node: fx.Node, new: fx.Node) -> None:
            placed[node] = results[node] = new
            if (node in given or node in kept) and any(map(is_quantizer, node.users)):
                placed[node] = graph.call_function(torch.clone, (new,))

        for index, node in enumerate(given):
            placeholder = graph.placeholder(f"given_{index}")
            placeholder.meta = dict(node.meta)
            placed[node] = placeholder
        for node in given:
            place(node, placed[node])
        needed = _needed(wanted, given)
        for node in self._simulated.graph.nodes:
            if node in placed or node not in needed:
                continue
            size = _size(node, given)
            if size is None:
                place(node, graph.node_copy(node, lambda n: placed[n]))
            elif isinstance(size, int):
                placed[node] = size
            else:
                placed[node] = graph.call_function(torch.ops.aten.sym_size.int, (placed[size[0]], size[1]))
        graph.output(tuple(results.get(node, placed[node]) for node in wanted))
        return graph


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
