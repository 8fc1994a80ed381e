"""Why a model cannot be captured, told by the line of the user's own code."""

from __future__ import annotations

import linecache
import re
import traceback
from pathlib import Path

import torch
from torch import nn

_FRAMEWORK = str(Path(torch.__file__).parent)
_OURS = str(Path(__file__).parent)

#: What stands in the message or the type of the error, and what to do about it.
_ADVICE = (
    ("packed_sequence", "packed sequences cannot be captured: give the layer padded ones, and mask its results"),
    ("DataDependent", "its result decides the program's flow or a shape: use torch.where or torch.cond instead"),
    ("data-dependent", "its result decides the program's flow or a shape: use torch.where or torch.cond instead"),
    ("bool(", "an `if` on a tensor cannot be captured: use torch.where or torch.cond instead"),
    (".item()", "a value taken out of a tensor cannot be captured: keep it a tensor"),
    ("numpy", "NumPy calls cannot be captured: use the torch function of that name"),
    (
        "Constraints violated",
        "the code fixes a size that the example leaves open: avoid Python arithmetic on that size",
    ),
)


def explain(error: BaseException, module: nn.Module) -> str:
    """A message for ModelError: what failed, in which line, and what to change."""
    reason = _first_line(str(error)) or type(error).__name__
    where = _line(error)
    text = f"{type(error).__name__} {error} {where[2] if where is not None else ''}"
    advice = next((advice for sign, advice in _ADVICE if sign in text), "rewrite this line with plain torch operations")
    name = type(module).__name__
    if where is None:
        return f"the model {name} cannot be captured by torch.export: {reason}; {advice}"
    file, number, code = where
    return f"the model {name} cannot be captured at {file}:{number}: `{code}`: {reason}; {advice}"


def _line(error: BaseException) -> tuple[str, int, str] | None:
    """The innermost frame of the error that is neither torch's nor ours; else one that the message names."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    for exception in reversed(chain):
        frames = [f for f in traceback.extract_tb(exception.__traceback__) if _is_users(f.filename)]
        if frames and frames[-1].lineno is not None:
            last = frames[-1]
            return last.filename, int(last.lineno or 0), (last.line or "").strip()
    for file, number in reversed(re.findall(r'File "([^"]+)", line (\d+)', str(error))):
        if _is_users(file):
            return file, int(number), linecache.getline(file, int(number)).strip()
    return None


def _is_users(file: str) -> bool:
    return not file.startswith((_FRAMEWORK, _OURS, "<")) and "site-packages/torch/" not in file


def _first_line(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line[:300]
