"""``.pt2``: an ExportedProgram with quantize and dequantize calls, and constants stored as integers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from isobit.encodings import Encodings
from isobit.errors import ModelError
from isobit_torch.export.quantized_decomposed import dequantized_constant, quantized_activation
from isobit_torch.export.standalone import (
    NewConstants,
    Standalone,
    call_of,
    example_inputs,
    plain_signature,
    standalone,
)
from isobit_torch.program.fx_nodes import DTYPE, attribute, erase_unread
from isobit_torch.program.program import Program
from isobit_torch.program.torch_export import named_arguments, quiet
from isobit_torch.simulate.insert_quantizers import insert_quantizers
from isobit_torch.simulate.quantizers import Quantizer
from isobit_torch.simulate.simulator import Simulator
from isobit_torch.translate.sites import bind
from isobit_torch.translate.translate import Translation

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_NOTE = (
    "model.pt2: torch.export.load reads it after `import torch.ao.quantization.fx._decomposed`. torch's reference "
    "quantizes by multiplying with the inverse of the scale: activations beside a tie may differ by one step"
)


def write_pt2(
    program: Program, translation: Translation, native: Simulator, encodings: Encodings, path: Path
) -> list[str]:
    """Write the float graph with `encodings`. Raises ModelError for formats and operations that the file cannot say."""
    exported = _export(program, native, _quantized(program, translation, native, encodings))
    exported.example_inputs = None  # the one part of the file that would be pickled
    torch.export.save(exported, path)
    return [_NOTE]


def _quantized(program: Program, translation: Translation, native: Simulator, encodings: Encodings) -> Standalone:
    """The float graph with quantize and dequantize calls in place of quantizers."""
    keys = {site: f"site{number}" for number, site in enumerate(encodings)}
    quantizers = {keys[site]: Quantizer(encoding) for site, encoding in encodings.items()}
    simulated = insert_quantizers(program.graph, translation, keys, quantizers)
    graph = simulated.graph
    constants = NewConstants.beside(graph)
    for site, node in simulated.after.items():
        source: Any = node.args[0]
        with graph.inserting_before(node):
            if source.op == "get_attr":
                value = attribute(native, source.target)
                _require_float32(str(source.target), value.dtype)
                layout, make = bind(translation, site).layout, partial(constants.replace, graph, source)
                result = dequantized_constant(graph, value, layout, site, encodings[site], make)
            else:
                _require_float32(str(site), source.meta.get(DTYPE))
                make = partial(constants.add, graph, f"isobit_grids.{keys[site]}")
                result = quantized_activation(graph, source, site, encodings[site], make)
        node.replace_all_uses_with(result)
        graph.erase_node(node)
    erase_unread(graph, lambda node: node.op == "get_attr")
    return standalone(native, graph, constants.values, plain_signature(program.signature))


def _require_float32(name: str, dtype: object) -> None:
    if str(dtype).removeprefix("torch.") != "float32":
        raise ModelError(f"{name!r} is {dtype}: a .pt2 file is written from float32, see sim.model.float()")


def _export(program: Program, native: Simulator, module: Standalone) -> ExportedProgram:
    signature = plain_signature(program.signature)
    call = call_of(signature, example_inputs(program, native.device()))
    axes = {
        info.name: {axis: torch.export.Dim.AUTO for axis, n in enumerate(info.shape) if isinstance(n, str)} or None
        for info in program.inputs
    }
    try:
        with quiet(), named_arguments(module, call), torch.no_grad():
            return torch.export.export(module, call.args, dynamic_shapes=call_of(signature, axes).by_name, strict=False)
    except Exception as error:
        raise ModelError(f"torch.export cannot write this model: {type(error).__name__}: {error}") from error
