"""Kernels of recurrent layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

RECURRENT: Mapping[str, Callable[..., Any]] = {}
