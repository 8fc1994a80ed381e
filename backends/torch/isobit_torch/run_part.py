"""A part of a graph, run from given values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

from isobit.graph import Graph
from isobit_torch.simulate.insert_quantizers import Simulated
from isobit_torch.translate.translate import Translation


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode, without gradients."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)


class PartRunner(fx.Interpreter):
    """Runs what leads from the inputs of a part of the neutral graph to its outputs, and nothing else."""

    def __init__(self, root: nn.Module, simulated: Simulated, translation: Translation, part: Graph) -> None:
        super().__init__(root, garbage_collect_values=False, graph=simulated.graph)
        self.extra_traceback = False  # of an error, the user is shown the first line alone
        self._nodes = {
            name: simulated.copies[translation.values[name]] for name in dict.fromkeys([*part.inputs, *part.outputs])
        }
        self._part = part
        self._wanted = {self._nodes[name] for name in part.outputs}
        given = {self._nodes[name] for name in part.inputs}
        needed = _leading(given, self._wanted)
        self._order = [node for node in self.graph.nodes if node in needed]
        self._readers = {node: len(needed.intersection(node.users)) for node in given | needed}

    def run_from(self, given: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The outputs of the part; each value is let go after its last reader."""
        # A quantizer may overwrite what it is given, which is the caller's, or is wanted as it was.
        self.env: dict[fx.Node, Any] = {self._nodes[name]: tensor.clone() for name, tensor in given.items()}
        left = dict(self._readers)
        results: dict[fx.Node, torch.Tensor] = {}
        for node in self._order:
            self.env[node] = value = self.run_node(node)
            if node in self._wanted:
                results[node] = value.clone()
            for read in node.all_input_nodes:
                left[read] -= 1
                if not left[read]:
                    del self.env[read]
        self.env = {}
        return {name: results[self._nodes[name]] for name in self._part.outputs}


def _leading(given: set[fx.Node], wanted: set[fx.Node]) -> set[fx.Node]:
    """The nodes from which the wanted ones are computed, where the given ones are there."""
    needed: set[fx.Node] = set()
    waiting = list(wanted)
    while waiting:
        node = waiting.pop()
        if node not in given and node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes
    return needed
