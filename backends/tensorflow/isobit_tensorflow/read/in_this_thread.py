"""Hooks in Keras and TensorFlow while a model is opened, which act for the opening thread alone."""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from typing import Any


def in_this_thread(hook: Callable[..., Any], usual: Callable[..., Any]) -> Callable[..., Any]:
    """`hook` where this thread calls it, and `usual` for all others."""
    thread = get_ident()

    def function(*args: Any, **kwargs: Any) -> Any:
        return (hook if get_ident() == thread else usual)(*args, **kwargs)

    return function
