"""Why a model cannot be captured, with the line of the user's own code."""

from __future__ import annotations

import linecache
import re
import traceback
from pathlib import Path

import torch
from torch import fx, nn
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from isobit.errors import ModelError
from isobit_torch.program.fx_nodes import op_name

_FRAMEWORK = str(Path(torch.__file__).parent)
_LIBRARY = str(Path(linecache.__file__).parent)
_BACKEND = str(Path(__file__).parents[1])

_PACKED = "packed sequences like these cannot be captured"
_BRANCH = "the program depends on the values of a tensor"
_AS_FILE = (
    "where a size has to follow values (lengths that a model of speech predicts), "
    "torch.onnx.export(module, example_inputs, 'model.onnx', dynamo=False), then isobit.quantize('model.onnx', data); "
    "a number or branch that a TracerWarning quotes there stays what it is for the example"
)
_INSTEAD = f"use torch.where, or torch.cond, in place of `if`, loops and sizes that follow values; {_AS_FILE}"

#: A sign in the message or the type of the error; what it means, where torch's own words would not say; what to do.
_ADVICE = (
    (
        "pad_packed_sequence",
        _PACKED,
        "give the layer padded ones, and mask its results; docs/recurrent-layers.md says which can be",
    ),
    ("__format__", "a tensor is formatted as text", "print and log outside of forward"),
    ("DataDependent", _BRANCH, _INSTEAD),
    ("data-dependent", _BRANCH, _INSTEAD),
    ("got FakeTensor", _BRANCH, "take sizes from x.shape, not from the values of a tensor"),
    ("bool(", _BRANCH, "an `if` on a tensor cannot be captured: use torch.where or torch.cond instead"),
    (".item()", "", "a value taken out of a tensor cannot be captured: keep it a tensor"),
    ("numpy", "", "NumPy calls cannot be captured: use the torch function of that name"),
    (
        "Constraints violated",
        "",
        "the code fixes a size that the example leaves open: avoid Python arithmetic on that size",
    ),
)


class DependsOnValuesError(ModelError):
    """What the code does, or a size in it, depends on the values of a tensor."""


def explain(error: BaseException, module: nn.Module) -> ModelError:
    """The error to raise: what failed, in which line, and what to change."""
    where = _line(error)
    text = f"{type(error).__name__} {error} {where[2] if where is not None else ''}"
    meaning, advice = next(
        ((meaning, advice) for sign, meaning, advice in _ADVICE if sign in text),
        ("", "rewrite this line with plain torch operations"),
    )
    reason = meaning or first_line(str(error)) or type(error).__name__
    name = type(module).__name__
    place = " by torch.export" if where is None else f" at {where[0]}:{where[1]}: `{where[2]}`"
    message = f"the model {name} cannot be captured{place}: {reason}; {advice}"
    return DependsOnValuesError(message) if meaning in (_BRANCH, _PACKED) else ModelError(message)


def explain_failure(error: BaseException, module: nn.Module, batch: str) -> str:
    """A message for ModelError where the user's own model fails on the user's own example, `batch` in words."""
    reason = f"{type(error).__name__}: {first_line(str(error))}"
    where = _line(error)
    place = f" at {where[0]}:{where[1]}: `{where[2]}`" if where is not None else ""
    name = type(module).__name__
    if "does not require grad" in reason or "does not have a grad_fn" in reason:
        return f"the model {name} cannot be captured{place}: it takes gradients in forward; compute them outside of it"
    return (
        f"the model {name} fails on the example inputs{place}: {reason}; it was given {batch}: pass a batch that it "
        "runs on, or what picks its arguments from yours, such as inputs=lambda batch: batch[1]"
    )


#: torch's tags of operations whose result is a number, or has a size, that only the data knows; what to do instead.
_ESCAPES = (
    (
        torch.Tag.data_dependent_output,
        "takes a value out of a tensor",
        f"keep it a tensor: x / x.amax() needs no number; {_AS_FILE}",
    ),
    (
        torch.Tag.dynamic_output_shape,
        "gives a tensor whose size depends on values",
        "keep the size: torch.where(mask, x, 0) in place of x[mask], a sum over a mask in place of nonzero; "
        f"{_AS_FILE}",
    ),
)


def refuse_data_dependence(graph: fx.Graph, module: nn.Module) -> None:
    """Raise ModelError for calls whose results no graph of fixed operations can hold, by the line of the code."""
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise ModelError(
                f"the model {type(module).__name__} cannot be captured{_place(node)}: torch's {node.target.__name__} "
                "runs a graph of its own; write it with plain torch operations, a loop with a fixed number of steps"
            )
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        unknown = free_unbacked_symbols(node.meta.get("val"))
        for tag, meaning, advice in _ESCAPES:
            is_size = tag is torch.Tag.dynamic_output_shape
            if is_size and not unknown:
                continue  # torch knows the size: one_hot of a given depth, a table read by numbers
            if tag not in node.target.tags and not (is_size and isinstance(node.meta["val"], torch.Tensor)):
                continue  # the first tensor of such a size makes it, whatever torch says of the operation
            name = type(module).__name__
            raise DependsOnValuesError(
                f"the model {name} cannot be captured{_place(node)}: {op_name(node)} {meaning}; {advice}"
            )


def _place(node: fx.Node) -> str:
    """The line of the user's code that made a node."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', str(node.meta.get("stack_trace", "")))
    lines = [(file, int(number)) for file, number in frames if is_users_file(file)]
    if not lines:
        return ""
    return f" at {source_line(*lines[-1])}"


def source_line(file: str, number: int) -> str:
    """A line of code as messages quote it."""
    return f"{file}:{number}: `{linecache.getline(file, number).strip()}`"


def _line(error: BaseException) -> tuple[str, int, str] | None:
    """The innermost frame of the error that is neither torch's nor ours; else one that the message names."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    for exception in reversed(chain):
        frames = [f for f in traceback.extract_tb(exception.__traceback__) if is_users_file(f.filename)]
        if frames and frames[-1].lineno is not None:
            last = frames[-1]
            return last.filename, int(last.lineno or 0), (last.line or "").strip()
    for file, number in reversed(re.findall(r'File "([^"]+)", line (\d+)', str(error))):
        if is_users_file(file):
            return file, int(number), linecache.getline(file, int(number)).strip()
    return None


def is_users_file(file: str) -> bool:
    """Whether code is neither torch's, nor Python's, nor ours."""
    if file.startswith(_LIBRARY) and "site-packages" not in file:
        return False
    return not file.startswith((_FRAMEWORK, _BACKEND, "<")) and "site-packages/torch/" not in file


def first_line(text: str) -> str:
    """The first line of a message that says something."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line[:300]
