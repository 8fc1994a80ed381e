"""Code that asks whether it is captured: where it then computes something else, it is told that it is not.

RecurrentGemma of transformers leaves out a factor where `torch.compiler.is_compiling()` says yes, and what is captured
would be another model than the one that runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch.utils import _pytree as pytree

from isobit.errors import ModelError
from isobit_torch.capture.aids.picked_rows import agree
from isobit_torch.program.torch_export import ONE_THREAD

_QUESTIONS = ("is_compiling", "is_exporting")

#: What is answered at the moment: to whom, is in `_answer`.
_answers: list[tuple[bool, set[str], dict[str, Callable[[], bool]]]] = []


@contextmanager
def say_captured(answer: bool) -> Iterator[set[str]]:
    """Code outside torch that asks `torch.compiler` gets this answer; what it asked is noted.

    The functions stay the objects that they are, with other code: torch.compile knows them by identity, and remembers
    which they are from the first time that it looks. So those count too who have imported them by name.
    """
    asked: set[str] = set()
    with ONE_THREAD:
        functions = {name: getattr(torch.compiler, name) for name in _QUESTIONS}
        codes = {name: function.__code__ for name, function in functions.items()}
        plain: dict[str, Callable[[], bool]] = {
            name: FunctionType(code, functions[name].__globals__) for name, code in codes.items()
        }
        _answers.append((answer, asked, plain))
        for name, code in (("is_compiling", _is_compiling.__code__), ("is_exporting", _is_exporting.__code__)):
            functions[name].__code__ = code
        try:
            yield asked
        finally:
            for name, function in functions.items():
                function.__code__ = codes[name]
            _answers.pop()


# The code of these two runs among the names of torch.compiler, and knows none of this module's.
def _is_compiling() -> bool:
    from isobit_torch.capture.say_captured import _answer

    return _answer("is_compiling")


def _is_exporting() -> bool:
    from isobit_torch.capture.say_captured import _answer

    return _answer("is_exporting")


def _answer(name: str) -> bool:
    """The answer to the code two calls up; torch's own code gets that of torch."""
    answer, asked, plain = _answers[-1]
    if sys._getframe(2).f_globals.get("__name__", "").partition(".")[0] == "torch":
        return bool(plain[name]())
    asked.add(name)
    return answer


def deciding_question(asked: set[str], wanted: Any, run: Callable[[], Any]) -> str | None:
    """What code asks by which it computes something else in a capture than when it runs; None for most code.

    `wanted` is what `run` gave when it `asked` this; it runs once or twice more where anything was asked.
    """
    if not asked:
        return None
    try:
        with say_captured(True):
            found = run()
    except ModelError:  # as it would be captured it does not run here: what the capture says of it is to be seen
        return None
    if _same(found, wanted) or not _same(run(), wanted):  # what differs each time says nothing
        return None
    return " and ".join(f"torch.compiler.{name}()" for name in sorted(asked))


def _same(found: Any, wanted: Any) -> bool:
    return agree(*([leaf for leaf in pytree.tree_leaves(x) if isinstance(leaf, torch.Tensor)] for x in (found, wanted)))
