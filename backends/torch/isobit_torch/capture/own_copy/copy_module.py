"""Copies of the user's module, which itself is never changed."""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from torch import nn

from isobit.errors import ModelError
from isobit_torch.capture.errors import first_line
from isobit_torch.capture.own_copy.bound_functions import bind_functions
from isobit_torch.capture.own_copy.held_tensors import held_tensors

#: Modules of torch.ao.quantization that compute in integers, observe, or round.
_OF_TORCH = re.compile(r"quantized|\.qat\.|FakeQuant|Observer")
#: Modules that change nothing until torch.ao.quantization prepares the model, which is a float model until then.
_STAND_INS = frozenset(("FloatFunctional", "FXFloatFunctional"))
_OTHER_TOOLS = frozenset(("bitsandbytes", "auto_gptq", "awq", "quanto", "optimum", "torchao", "pytorch_quantization"))

_TENSORS_AND_PARTS = ("_parameters", "_buffers", "_modules")


def copy_module(model: nn.Module, *, is_shared: bool = False) -> nn.Module:
    """A copy in evaluation mode; where `is_shared`, around the same parameters.

    A tensor that a forward pass has left in the module (features, attention maps) is copied without its history, and
    what cannot be copied at all (a lock, an open file, a generator) is the same object in both. Raises ModelError.
    """
    for name, parameter in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(parameter):
            raise ModelError(f"{name!r} has no values yet: run the model once on a batch, or load its weights, first")
    memo: dict[int, Any] = {}
    for module in model.modules():
        held = [value for name, value in vars(module).items() if name != "_modules"]
        for tensor in held_tensors(held):
            if not tensor.is_leaf:
                memo[id(tensor)] = tensor.detach().clone()
    if is_shared:  # but for tables whose rows forward itself shortens
        written = {id(part.weight) for part in model.modules() if getattr(part, "max_norm", None) is not None}
        memo |= {id(parameter): parameter for parameter in model.parameters() if id(parameter) not in written}
    copied = dict(memo)
    try:
        module = copy.deepcopy(model, copied)
    except Exception:
        copied = memo | _uncopied(model, memo)
        try:
            module = copy.deepcopy(model, copied)
        except Exception as error:
            raise ModelError(f"the model cannot be copied by copy.deepcopy: {first_line(str(error))}") from error
    bind_functions(copied)
    return module.eval()


def refuse_quantized(model: nn.Module) -> None:
    """Raise ModelError for a module that another tool has quantized, or made ready for it."""
    for name, part in model.named_modules():
        kind = type(part)
        is_torchs = kind.__module__.startswith("torch.ao.") and kind.__name__ not in _STAND_INS
        is_quantized = is_torchs and _OF_TORCH.search(f"{kind.__module__}.{kind.__name__}")
        if is_quantized or kind.__module__.partition(".")[0] in _OTHER_TOOLS:
            raise ModelError(
                f"the part {name or '(the model itself)'!r} is a {kind.__module__}.{kind.__name__}: the model is "
                "quantized already; pass the float module that it was made from"
            )


def refuse_scripts(model: nn.Module) -> None:
    """Raise ModelError for a module that TorchScript has compiled, or that has such a part."""
    scripts = [name for name, part in model.named_modules() if isinstance(part, torch.jit.ScriptModule)]
    if scripts:
        what = f"the part {scripts[0]!r} is" if scripts[0] else "the model is"
        raise ModelError(
            f"{what} a TorchScript module, which cannot be captured: use the nn.Module that it was made from, or "
            "torch.onnx.export(module, example_inputs, 'model.onnx', dynamo=False), then "
            "isobit.quantize('model.onnx', data)"
        )


def _uncopied(model: nn.Module, memo: dict[int, Any]) -> dict[int, Any]:
    """The attributes of modules that copy.deepcopy does not copy, by identity."""
    found: dict[int, Any] = {}
    for module in model.modules():
        for name, value in vars(module).items():
            if name in _TENSORS_AND_PARTS:
                continue
            try:
                copy.deepcopy(value, dict(memo))
            except Exception:
                found[id(value)] = value
    return found
