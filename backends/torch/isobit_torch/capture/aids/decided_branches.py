"""Branches that follow the values of a tensor: the way that the example takes is kept.

A graph of fixed operations holds one way. `TakenWays` runs beside the user's module and notes which way each line
takes; `DecidedBranches` has the same lines go the same ways in a capture. What is captured is right for inputs that go
these ways alone, so every batch of data is tried as well (`Given.refuse_other_ways`).
"""

from __future__ import annotations

import sys
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from isobit_torch.capture.errors import is_users_file, source_line

#: A line of the user's code, by file and number.
Line = tuple[str, int]
#: The truths that each line asked for, in their order.
Ways = dict[Line, list[bool]]

_TRUTHS = frozenset(("__bool__", "is_nonzero", "equal", "allclose"))
_VALUES = frozenset(("item", "tolist"))


def asks_for_truth(func: Callable[..., Any], args: Sequence[Any]) -> bool:
    """Whether a call turns one tensor, or a comparison of tensors, into a Python truth."""
    name = getattr(func, "__name__", "")
    if name in _TRUTHS:
        return True
    asked = args[0] if args else None
    return name in _VALUES and isinstance(asked, torch.Tensor) and asked.dtype == torch.bool and not asked.ndim


class Enough(BaseException):
    """Ends a run in the middle of the user's code: whatever catches an Exception there lets it pass."""


class TakenWays(TorchFunctionMode):
    """Notes the truths that code asks tensors for while a module runs; raises Enough once it has `wanted` ones."""

    def __init__(self, wanted: Ways | None = None) -> None:
        super().__init__()
        self.ways: Ways = {}
        self._left = None if wanted is None else {line: len(truths) for line, truths in wanted.items()}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The operation."""
        found = func(*args, **(kwargs or {}))
        if asks_for_truth(func, args):
            line = _asking_line()
            if line is not None:
                self.ways.setdefault(line, []).append(bool(found))
                self._count(line)
        return found

    def _count(self, line: Line) -> None:
        if self._left is None:
            return
        if line in self._left:
            self._left[line] -= 1
        if not any(count > 0 for count in self._left.values()):
            raise Enough


class DecidedBranches(TorchFunctionMode):
    """Answers with the ways that were taken, where nothing but the data knows."""

    def __init__(self, ways: Ways, is_known: Callable[[torch.Tensor], bool]) -> None:
        """`is_known` says of a tensor whether its values are known without data."""
        super().__init__()
        self._left = defaultdict[Line, deque[bool]](deque, {line: deque(truths) for line, truths in ways.items()})
        self._is_known = is_known
        self._asked: Ways = {}
        self.decided: Ways = {}  # of each line up to the last that the data decides, with those known before it

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The operation, or the truth that the same line found with the example."""
        line = _asking_line() if asks_for_truth(func, args) else None
        left = self._left[line] if line is not None else ()
        if line is None or not left:
            return func(*args, **(kwargs or {}))
        truth = left.popleft()
        self._asked.setdefault(line, []).append(truth)
        if all(self._is_known(value) for value in args if isinstance(value, torch.Tensor)):
            return func(*args, **(kwargs or {}))
        self.decided[line] = list(self._asked[line])
        return truth


def other_way(decided: Ways, ways: Ways) -> str | None:
    """The first line, in words, that goes another way than was decided; None where none does."""
    for line, truths in decided.items():
        if ways.get(line, [])[: len(truths)] != truths:
            return source_line(*line)
    return None


def told(decided: Ways) -> list[str]:
    """A note for each line."""
    return [
        f"{source_line(*line)} decides by values: the way that the example takes is kept ({_in_words(truths)}), and "
        "data that goes another is refused; torch.where or torch.cond keeps both"
        for line, truths in decided.items()
    ]


def _in_words(truths: Sequence[bool]) -> str:
    return ", ".join(dict.fromkeys(map(str, truths)))


def _asking_line() -> Line | None:
    """The innermost line that is neither torch's nor ours."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if is_users_file(frame.f_code.co_filename):
            return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back
    return None
