"""LSTM, GRU and RNN as the neutral graph has them: a module call for each layer and direction.

PyTorch has one call for all layers and directions. What it does between the layers and at both ends (transpositions,
concatenations, slices of initial states) becomes calls of its own.

ONNX has no LSTM with a projection (``proj_size``), and needs none: where the state that a step reads is W_hr h, its
product with W_hh is the product of h with W_hh W_hr. So it is an LSTM with that recurrent weight, and a linear layer
behind it.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from isobit.errors import ModelError
from isobit_torch.decompose.expander import Expander
from isobit_torch.program.constants import add_constant, note_factors
from isobit_torch.program.fx_nodes import NAME, aten, attribute, getitems, is_zeros, op_name
from isobit_torch.program.modules import Recurrent, add_functional
from isobit_torch.program.recurrent_calls import KINDS, has_projection, parameters_of_a_cell, why_float


def decompose_recurrent(e: Expander, node: fx.Node, a: dict[str, Any]) -> None:
    """All layers and directions of a call take over its readers; returns None, as nothing reads the call any more."""
    if why_float(node, a):
        return
    replace_results(e.graph, node, _Network(e, node, a).run())


def replace_results(graph: fx.Graph, node: fx.Node, results: Mapping[int, fx.Node]) -> None:
    """Let the readers of each of a node's results read another node."""
    for user in list(node.users):
        index: Any = user.args[1]
        results[index].meta["val"] = user.meta.get("val")
        user.replace_all_uses_with(results[index])
        graph.erase_node(user)


class _Network:
    """One call of ``aten::lstm`` and its kin."""

    def __init__(self, e: Expander, node: fx.Node, a: dict[str, Any]) -> None:
        self.e, self.node, self.a = e, node, a
        self.kind, self.activation = KINDS[op_name(node)]
        self.layers, self.directions = int(a["num_layers"]), 2 if a["bidirectional"] else 1
        self.is_projected, self.count = has_projection(a), parameters_of_a_cell(a)
        self.read = getitems(node)
        states = a["hx"]
        self.states: list[Any] = list(states) if isinstance(states, list | tuple) else [states]

    def run(self) -> dict[int, fx.Node]:
        """The results of the call that are read, by index."""
        x = self.a["input"]
        if self.a["batch_first"]:
            x = self.e.call(aten.transpose.int, x, 0, 1, part="sequence_first", like=x)
        last: list[dict[int, fx.Node]] = []
        for layer in range(self.layers):
            x, states = self._layer(layer, x)
            last.append(states)
            if self.a["dropout"] and layer + 1 < self.layers:
                x = self.e.call(
                    aten.dropout.default, x, float(self.a["dropout"]), False, part=f"dropout{layer}", like=x
                )
        if self.a["batch_first"]:
            x = self.e.call(aten.transpose.int, x, 0, 1, part="batch_first", like=x)
        joined = {i: self._join([states[i] for states in last], 0, f"last{i}") for i in self.read if i > 0}
        return {0: x, **joined}

    def _layer(self, layer: int, x: fx.Node) -> tuple[fx.Node, dict[int, fx.Node]]:
        """The sequence (time, batch, directions * hidden) of a layer, and those of its last states that are read."""
        stem = f"layer{layer}." if self.layers > 1 else ""
        states = [self._state(state, layer, f"{stem}initial{i}") for i, state in enumerate(self.states)]
        calls = [self._direction(layer, direction, x, states, stem) for direction in range(self.directions)]
        y = self._join([self._result(call, 0) for call in calls], 1, f"{stem}directions")
        y = self.e.call(aten.permute.default, y, [0, 2, 1, 3], part=f"{stem}by_batch", like=x)
        y = self.e.call(aten.flatten.using_ints, y, 2, 3, part=f"{stem}joined", like=x)
        last_read = sorted(index for index in self.read if index > 0)
        return y, {i: self._join([self._result(call, i) for call in calls], 0, f"{stem}last{i}") for i in last_read}

    def _state(self, state: fx.Node, layer: int, part: str) -> fx.Node | None:
        """The initial state of one layer; zeros are what a layer starts from anyway."""
        if is_zeros(state):
            return None
        return state if self.layers == 1 else self._cut(state, layer * self.directions, self.directions, part)

    def _direction(
        self, layer: int, direction: int, x: fx.Node, states: Sequence[fx.Node | None], stem: str
    ) -> tuple[fx.Node, fx.Node | None]:
        """The call, and the weight of the projection behind it."""
        start = (layer * self.directions + direction) * self.count
        own, projection = list(self.a["params"][start : start + self.count]), None
        if self.is_projected:
            projection = own.pop()
        if self.directions > 1:
            stem += "reverse" if direction else "forward"
            states = [None if s is None else self._cut(s, direction, 1, f"{stem}.initial") for s in states]
        name = f"{self.node.meta[NAME]}.{stem}".rstrip(".")
        if projection is not None:
            own[1] = self._merged(own[1], projection)
            if states[0] is not None:
                states = [self._unprojected(states[0], projection, name), *states[1:]]
        path = add_functional(self.e.root, Recurrent(self.kind, self.activation, reverse=bool(direction)))
        call = self.e.graph.call_module(path, (x, *[*own, None, None][:4], *[*states, None][:2]))
        call.meta[NAME] = name
        call.meta["val"] = self.node.meta.get("val")
        return call, projection

    def _merged(self, weight: fx.Node, projection: fx.Node) -> fx.Node:
        """What the state meets when it is not projected."""
        note = (
            f"the recurrent weights of {self.node.meta[NAME]!r} are constants, each times that of its projection: "
            "train before quantizing"
        )
        if note not in self.e.notes:
            self.e.notes.append(note)
        with torch.no_grad():
            product = self._value(weight).double() @ self._value(projection).double()
        constant = add_constant(self.e.root, self.e.graph, f"{weight.meta[NAME]}_projected", product.float())
        note_factors(self.e.root, str(weight.target), str(projection.target))
        return constant

    def _unprojected(self, state: fx.Node, projection: fx.Node, name: str) -> fx.Node:
        """A state whose projection is the one given: the shortest of them."""
        value = self._value(projection).detach().double()
        rank = int(torch.linalg.matrix_rank(value))
        if rank < len(value):
            raise ModelError(
                f"the projection (proj_size) of the LSTM {name!r} has rank {rank} of {len(value)}, so that ONNX has no "
                "form of it behind a given state: let it start from zeros, or project by a Linear of your own"
            )
        inverse = torch.linalg.pinv(value).float()
        weight = add_constant(self.e.root, self.e.graph, f"{projection.meta[NAME]}_inverse", inverse)
        return self.e.call(aten.linear.default, state, weight, part=self._part(name, "unprojected"), like=state)

    def _part(self, name: str, part: str) -> str:
        """What the call at `name` adds to the name of the whole network, and what stands behind it."""
        return f"{name.removeprefix(self.node.meta[NAME])}.{part}".lstrip(".")

    def _value(self, constant: fx.Node) -> torch.Tensor:
        value: torch.Tensor = attribute(self.e.root, str(constant.target))
        return value

    def _cut(self, state: fx.Node, start: int, count: int, part: str) -> fx.Node:
        return self.e.call(aten.slice.Tensor, state, 0, start, start + count, part=part, like=state)

    def _result(self, call: tuple[fx.Node, fx.Node | None], index: int) -> fx.Node:
        node, projection = call
        result = self.e.call(operator.getitem, node, index, like=self.a["input"])
        if projection is None or index == 2:  # the state of the cell is not projected
            return result
        part = self._part(node.meta[NAME], f"projected{index or ''}")
        return self.e.call(aten.linear.default, result, projection, part=part, like=self.a["input"])

    def _join(self, parts: Sequence[fx.Node], axis: int, part: str) -> fx.Node:
        if len(parts) == 1:
            return parts[0]
        return self.e.call(aten.cat.default, list(parts), axis, part=part, like=self.a["input"])
