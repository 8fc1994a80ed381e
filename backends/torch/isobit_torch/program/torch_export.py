"""How torch.export is called: without its chatter, and by the names of forward's arguments."""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from isobit.backend.quiet_loggers import quiet_loggers
from isobit_torch.program.signature import Call

#: What is replaced in torch for the length of a block is replaced for all threads: one is in such blocks at a time.
ONE_THREAD = threading.RLock()


@contextmanager
def named_arguments(
    module: nn.Module, call: Call, inside: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> Iterator[None]:
    """Let forward name its arguments: torch.export has no dynamic shapes for ``*args`` and ``**kwargs``.

    It runs in a block of `inside`.
    """
    original = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with inside():
            return original(*args, **kwargs)

    forward.__signature__ = call.plain  # type: ignore[attr-defined]
    had_own = "forward" in vars(module)
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if had_own:
            module.__dict__["forward"] = original
        else:
            del module.__dict__["forward"]


@contextmanager
def without_moves() -> Iterator[None]:
    """``self.layer.to(x.dtype)`` in forward does nothing where the layer is of that type and there already.

    While a module is captured, torch replaces the parameters all the same, and cannot.
    """
    move = nn.Module.to

    def to(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        parsed: Any = torch._C._nn._parse_to(*args, **kwargs)
        device, dtype, _, layout = parsed
        tensors = (*self.parameters(), *self.buffers())
        is_there = layout is None and all(
            tensor.device == (device or tensor.device)
            and (not tensor.is_floating_point() or tensor.dtype == (dtype or tensor.dtype))
            for tensor in tensors
        )
        return self if is_there else move(self, *args, **kwargs)

    nn.Module.to = to  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        nn.Module.to = move  # type: ignore[method-assign]


@contextmanager
def from_left_to_right() -> Iterator[None]:
    """torch.einsum takes its operands as they come: for another order opt_einsum turns open sizes into numbers."""
    planner: Any = torch.backends.opt_einsum
    if not planner.is_available() or not planner.enabled:
        yield
        return
    with planner.flags(enabled=False):
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """torch.export logs what it retries, and prints what it has so far; what matters is in the error."""
    names = ("torch", "torch.export", "torch.fx", "torch._dynamo", "torch._subclasses.fake_tensor")
    hidden = contextlib.redirect_stderr(io.StringIO())
    with ONE_THREAD, warnings.catch_warnings(), hidden, quiet_loggers(*names, level=logging.CRITICAL):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def without_autocast() -> Iterator[list[str]]:
    """In this thread, code under ``torch.autocast`` computes as it does without; yields the types that it asks for.

    torch has no switch for that: the two ends of the block are replaced while the module runs.
    """
    kind: Any = torch.autocast
    thread = threading.get_ident()
    asked: list[str] = []

    def pass_in(self: Any) -> Any:
        if threading.get_ident() != thread:
            return enter(self)
        if self._enabled:
            asked.append(str(self.fast_dtype).removeprefix("torch."))
        return self

    def pass_out(self: Any, *error: Any) -> Any:
        return leave(self, *error) if threading.get_ident() != thread else False

    kinds = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    with ONE_THREAD, contextlib.ExitStack() as stack:
        for device in kinds:  # where the caller is in such a block
            stack.enter_context(torch.autocast(device, enabled=False))
        enter, leave = kind.__enter__, kind.__exit__
        kind.__enter__, kind.__exit__ = pass_in, pass_out
        try:
            yield asked
        finally:
            kind.__enter__, kind.__exit__ = enter, leave
