"""TorchScript: a trace of the simulator in evaluation mode, of plain ATen operations, bit for bit the simulator's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from isobit.errors import ModelError
from isobit_torch.export.standalone import (
    NewConstants,
    Standalone,
    call_of,
    example_inputs,
    plain_signature,
    standalone,
)
from isobit_torch.export.trace_calls import make_traceable
from isobit_torch.program.fx_nodes import attribute, erase_unread
from isobit_torch.program.program import Program, copy_graph
from isobit_torch.program.signature import Call, Signature
from isobit_torch.program.torch_export import named_arguments, quiet
from isobit_torch.simulate.quantizers import Quantizer, WeightQuantizer
from isobit_torch.simulate.simulator import Simulator


def write_torchscript(program: Program, native: Simulator, path: Path) -> list[str]:
    """Write the simulator as it is now; quantizers that are off are left out. Raises ModelError."""
    signature, notes = plain_signature(program.signature), []
    graph, rounded = _with_rounded_constants(native)
    make_traceable(graph)
    if not _is_traceable(signature):
        signature = _flat(graph, signature)
        notes = [f"{path.name} returns a tuple of tensors: {', '.join(map(str, signature.outputs))}"]
    module = standalone(native, graph, rounded, signature)
    call = call_of(signature, example_inputs(program, native.device()))
    try:
        with quiet(), named_arguments(module, call), torch.no_grad():
            script: Any = torch.jit.trace(module, call.args, strict=False, check_trace=False)  # type: ignore[no-untyped-call]
        for which in (0, 1) if program.symbols.sizes else (0,):
            _check(module, script, call_of(signature, example_inputs(program, native.device(), which)))
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"torch.jit.trace cannot write this model: {type(error).__name__}: {error}") from error
    with quiet():
        script.save(str(path))
    return notes


def _with_rounded_constants(native: Simulator) -> tuple[fx.Graph, dict[str, torch.Tensor]]:
    """The simulator's graph with constants that are on their grids already, under their names, and those constants."""
    graph = copy_graph(native.graph)[0]
    constants = NewConstants.beside(graph)
    for node in list(graph.nodes):
        quantizer = attribute(native, str(node.target)) if node.op == "call_module" else None
        if not isinstance(quantizer, Quantizer):
            continue
        result: Any = node.args[0]
        if not quantizer.enabled:
            pass
        elif isinstance(quantizer, WeightQuantizer):
            with graph.inserting_before(node), torch.no_grad():
                value = quantizer(attribute(native, result.target)).detach()
                result = constants.replace(graph, result, "", value)
        else:
            continue
        node.replace_all_uses_with(result)
        graph.erase_node(node)
    erase_unread(graph, lambda node: node.op == "get_attr")
    return graph, constants.values


def _is_traceable(signature: Signature) -> bool:
    """TorchScript returns a tensor, a dict of tensors or a tuple of tensors."""
    spec = signature.out_spec
    tensors = None not in signature.outputs and all(child.is_leaf() for child in spec.children())
    return spec.is_leaf() or (tensors and spec.type in (dict, tuple))


def _flat(graph: fx.Graph, signature: Signature) -> Signature:
    """Let the graph return its tensors alone, in order."""
    output = next(node for node in graph.nodes if node.op == "output")
    results: Any = output.args[0]
    tensors = [(value, name) for value, name in zip(results, signature.outputs, strict=True) if name is not None]
    output.args = (tuple(value for value, _ in tensors),)
    names = tuple(name for _, name in tensors)
    return Signature(signature.arguments, pytree.tree_flatten(names)[1], names)


def _check(module: Standalone, script: Any, call: Call) -> None:
    """The trace must give the simulator's bits, at another size of each dynamic axis too."""
    with torch.no_grad():
        expected, traced = (pytree.tree_leaves(run(*call.args)) for run in (module, script))
    for a, b in zip(expected, traced, strict=True):
        if (
            a.shape != b.shape
            or not torch.equal(a.isnan(), b.isnan())
            or not torch.equal(a.nan_to_num(), b.nan_to_num())
        ):
            shapes = [tuple(value.shape) for value in pytree.tree_leaves(call.args)]
            raise ModelError(
                f"the trace of this model computes something else than the simulator for inputs of shape {shapes}: "
                "its code may depend on the sizes in a way that TorchScript cannot follow; export to 'onnx' or 'pt2'"
            )
