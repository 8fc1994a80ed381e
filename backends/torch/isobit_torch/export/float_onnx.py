"""torch.onnx.export, called on a float graph whose open sizes stay open."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from isobit.backend.quiet_loggers import quiet_loggers
from isobit.errors import ModelError
from isobit_torch.export.kept_translations import kept_translations
from isobit_torch.export.marks import onnx_translation
from isobit_torch.export.recurrent import recurrent_translation
from isobit_torch.program.devices import follow
from isobit_torch.program.program import Program
from isobit_torch.simulate.quantizers import QUANTIZERS
from isobit_torch.simulate.simulator import Simulator

if TYPE_CHECKING:
    import onnx_ir as ir

#: int4, int16 and blocks in QuantizeLinear exist from here on.
OPSET = 21

#: Open sizes are traced with these multiples of the example's: torch takes a size that equals a number of the code for
#: that number, and would write a file for it alone.
_MULTIPLES = (13, 17, 19, 23)


def float_onnx(program: Program, native: Simulator, graph: fx.Graph) -> ir.Model:
    """The float graph as the exporter writes it. Raises ModelError for what ONNX cannot say."""
    training = native.training
    native.eval()
    follow(graph, native.device(), torch.device("cpu"))
    module = fx.GraphModule(_flat_root(native), _tensors_only(graph))
    module.eval()
    try:
        with _quiet(), torch.no_grad(), kept_translations():
            return _with_open_sizes(module, program)
    except Exception as error:
        raise ModelError(f"torch.onnx.export cannot write this model: {_reason(error)}") from error
    finally:
        native.train(training)


def _with_open_sizes(module: nn.Module, program: Program) -> ir.Model:
    """The model traced at sizes that leave open what is open; an input whose size is fixed all the same says so."""
    first, second = ({name: two[which] for name, two in program.symbols.sizes.items()} for which in (0, 1))
    far = {name: size * _MULTIPLES[i % len(_MULTIPLES)] for i, (name, size) in enumerate(first.items())}
    tries = [far, second, first] if first else [first]
    for sizes in tries:
        try:
            exported = _captured(module, program, sizes)
        except Exception:
            if sizes is tries[-1]:
                raise
            continue
        result: Any = torch.onnx.export(
            exported,
            (),
            dynamo=True,
            optimize=False,
            opset_version=OPSET,
            custom_translation_table={**onnx_translation(), **recurrent_translation()},
            verbose=False,
        )
        model: ir.Model = result.model
        fixed = [(value, axis) for value in model.graph.inputs for axis in _fixed_axes(value)]
        if not fixed:
            break
    for value, axis in fixed:
        assert value.shape is not None
        value.shape[axis] = int(str(value.shape[axis]))
    return model


def _captured(module: nn.Module, program: Program, sizes: Mapping[str, int]) -> ExportedProgram:
    feeds = tuple(
        torch.empty(
            [sizes[n] if isinstance(n, str) else n for n in info.shape], dtype=getattr(torch, info.dtype), device="cpu"
        )
        for info in program.inputs
    )
    shapes = tuple(
        {axis: torch.export.Dim.AUTO for axis, n in enumerate(info.shape) if isinstance(n, str)} or None
        for info in program.inputs
    )
    return torch.export.export(module, feeds, dynamic_shapes=shapes, strict=False)


def _fixed_axes(value: ir.Value) -> list[int]:
    """The axes that were to be open and have a number for a name."""
    import onnx_ir as ir

    shape = value.shape or ()
    return [a for a, n in enumerate(shape) if isinstance(n, ir.SymbolicDim) and str(n.value).isdigit()]


def _reason(error: BaseException) -> str:
    """What the innermost of a chain of errors says: the outer ones are advice for people who write exporters."""
    while error.__cause__ is not None:
        error = error.__cause__
    missing = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", str(error))
    if missing:
        return (
            f"ONNX has no operation for {missing[1]}: replace it in the model, or export what is before and behind it"
        )
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


def _tensors_only(graph: fx.Graph) -> fx.Graph:
    """Without the outputs that are no tensors, which ONNX cannot have; in place."""
    output = next(node for node in graph.nodes if node.op == "output")
    results: Any = output.args[0]
    output.args = (tuple(value for value in results if isinstance(value, fx.Node)),)
    return graph


def _flat_root(native: Simulator) -> nn.Module:
    """The parameters without the simulator around them, on the CPU: the file is the same wherever the model is."""
    root = nn.Module()
    for name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
        root.__dict__[name] = native.__dict__[name]
    root._modules = {name: module for name, module in native._modules.items() if name != QUANTIZERS}
    if native.device().type == "cpu":
        return root
    held: dict[int, Any] = {id(t): t.detach().cpu() for t in root.buffers()}
    held |= {id(t): nn.Parameter(t.detach().cpu(), requires_grad=False) for t in root.parameters()}
    return copy.deepcopy(root, held)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints and logs its progress, and traces each call back to lines of code that nobody reads here."""
    names = ("torch", "torch.onnx", "onnxscript", "onnx_ir")
    hidden = contextlib.redirect_stdout(io.StringIO())
    traces = fx.config.do_not_emit_stack_traces
    fx.config.do_not_emit_stack_traces = True
    try:
        with warnings.catch_warnings(), hidden, quiet_loggers(*names, level=logging.CRITICAL):
            warnings.simplefilter("ignore")
            yield
    finally:
        fx.config.do_not_emit_stack_traces = traces
