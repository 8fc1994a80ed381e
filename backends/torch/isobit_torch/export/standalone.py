"""Modules to write to a file: a graph over the tensors that it reads, which takes and returns plain containers."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from isobit.graph.free_name import take_name
from isobit_torch.program.fx_nodes import attribute
from isobit_torch.program.program import Program
from isobit_torch.program.signature import Argument, Call, Signature, plain_spec
from isobit_torch.simulate.simulator import Simulator


class Standalone(nn.Module):
    """Takes and returns plain containers. No fx.GraphModule: torch.export would run its graph, without this forward."""

    def __init__(self, computed: fx.GraphModule, signature: Signature) -> None:
        super().__init__()
        for name in ("_parameters", "_buffers", "_modules"):
            self.__dict__[name] = computed.__dict__[name]  # the same, so what torch.export swaps is swapped for both
        self.__dict__["isobit_computed"], self.__dict__["isobit_signature"] = computed, signature

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The user's arguments and results."""
        signature: Signature = self.__dict__["isobit_signature"]
        return signature.unflatten(self.__dict__["isobit_computed"](*signature.flatten(args, kwargs)))


def standalone(
    native: Simulator, graph: fx.Graph, changed: Mapping[str, torch.Tensor], signature: Signature
) -> Standalone:
    """A module in evaluation mode that computes `graph`, with the tensors in `changed` and those of `native`."""
    read = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    held: dict[str, Any] = {path: changed[path] if path in changed else attribute(native, path) for path in read}
    for path in {str(node.target) for node in graph.nodes if node.op == "call_module"}:
        held[path] = _of_its_own(attribute(native, path), {name.removeprefix(f"{path}.") for name in read})
    module = Standalone(fx.GraphModule(held, graph), signature)
    module.eval()
    return module


def _of_its_own(module: nn.Module, apart: Collection[str]) -> nn.Module:
    """The same in another module, without the tensors in `apart`."""
    copied = copy.copy(module)
    for name in ("_parameters", "_buffers", "_modules"):
        copied.__dict__[name] = {key: value for key, value in module.__dict__[name].items() if key not in apart}
    return copied


@dataclass
class NewConstants:
    """New constants of a graph by path; a path that another constant has is not given twice."""

    taken: set[str]
    values: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def beside(cls, graph: fx.Graph) -> NewConstants:
        """None yet; the paths of the graph's own constants are taken."""
        return cls({str(node.target) for node in graph.nodes if node.op == "get_attr"})

    def add(self, graph: fx.Graph, path: str, end: str, value: torch.Tensor) -> fx.Node:
        """A node that reads `value`, at `path` and `end` where that is free."""
        path = take_name(path + end, self.taken)
        self.values[path] = value
        return graph.get_attr(path)

    def replace(self, graph: fx.Graph, source: fx.Node, end: str, value: torch.Tensor) -> fx.Node:
        """The same for what stands in for the constant `source`, whose own path is free if it had this one reader."""
        if not end and len(source.users) == 1:
            self.taken.discard(str(source.target))
        return self.add(graph, str(source.target), end, value)


def plain_signature(signature: Signature) -> Signature:
    """A signature without the user's own classes and without arguments that hold no tensor."""
    arguments = tuple(Argument(a.name, plain_spec(a.spec), a.leaves) for a in signature.arguments if any(a.leaves))
    return Signature(arguments, plain_spec(signature.out_spec), signature.outputs)


def call_of(signature: Signature, values: Mapping[str, Any]) -> Call:
    """The call with `values` by input name: every argument by position, in the user's order."""
    args = tuple(
        pytree.tree_unflatten([None if leaf is None else values[leaf] for leaf in a.leaves], a.spec)
        for a in signature.arguments
    )
    return Call(args, {}, tuple(a.name for a in signature.arguments))


def example_inputs(program: Program, device: torch.device, which: int = 0) -> dict[str, torch.Tensor]:
    """Inputs by name, at one of two sizes of each dynamic axis: noise for floats, zeros for what may be an index."""
    inputs = {}
    generator = torch.Generator().manual_seed(which)
    for info in program.inputs:
        shape, dtype = program.symbols.shape(info, which), getattr(torch, info.dtype)
        value = torch.zeros(shape, dtype=dtype)
        if dtype.is_floating_point:
            value.copy_(torch.randn(shape, generator=generator))
        inputs[info.name] = value.to(device)
    return inputs
