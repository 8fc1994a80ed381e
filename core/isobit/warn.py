"""A warning that points at the user's own line."""

from __future__ import annotations

import sys
import warnings

_OURS, _BETWEEN = "isobit", frozenset({"contextlib", "functools"})


def warn(text: str, category: type[Warning]) -> None:
    """Warn as from the nearest line outside isobit and its backends, however deep the call came from.

    That line is what Python prints before the text, and what a filter by module compares.
    """
    level = 2
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, category, stacklevel=level)


def _is_ours(module: str) -> bool:
    package = module.partition(".")[0]
    return package == _OURS or package.startswith(f"{_OURS}_") or package in _BETWEEN
