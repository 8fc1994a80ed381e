"""A time by which work ends: set around it, and asked between two batches, layers and steps of whatever runs there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_DEADLINE: ContextVar[float | None] = ContextVar("isobit_deadline", default=None)


class TimeIsOver(BaseException):
    """Ends work at its deadline. Like KeyboardInterrupt it is no Exception, so what goes on after those ends too."""


@contextmanager
def until(deadline: float | None) -> Iterator[None]:
    """What runs inside ends with TimeIsOver after `deadline`, a `time.monotonic()`; None: never."""
    token = _DEADLINE.set(deadline)
    try:
        yield
    finally:
        _DEADLINE.reset(token)


def check_time() -> None:
    """Raise TimeIsOver where the deadline around this has passed."""
    deadline = _DEADLINE.get()
    if deadline is not None and time.monotonic() > deadline:
        raise TimeIsOver
