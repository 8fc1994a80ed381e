"""Code that asks whether it is captured: where it then computes something else, it is told that it is not.

RecurrentGemma of transformers leaves out a factor where `torch.compiler.is_compiling()` says yes, and what is captured
would be another model than the one that runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import _pytree as pytree

from isobit.errors import ModelError
from isobit_torch.capture.aids.picked_rows import agree

_QUESTIONS = ("is_compiling", "is_exporting")


@contextmanager
def say_captured(answer: bool) -> Iterator[set[str]]:
    """Code outside torch that asks through `torch.compiler` gets this answer; what it asked is noted."""
    asked: set[str] = set()
    plain = {name: getattr(torch.compiler, name) for name in _QUESTIONS}

    def question(name: str) -> Callable[[], bool]:
        def ask() -> bool:
            if torch.compiler.is_dynamo_compiling():  # True where torch.compile reads this
                return True
            if sys._getframe(1).f_globals.get("__name__", "").partition(".")[0] == "torch":
                return bool(plain[name]())
            asked.add(name)
            return answer

        return ask

    for name in _QUESTIONS:
        setattr(torch.compiler, name, question(name))
    try:
        yield asked
    finally:
        for name, function in plain.items():
            setattr(torch.compiler, name, function)


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
