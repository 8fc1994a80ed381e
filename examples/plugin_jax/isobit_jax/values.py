"""Values: the arrays of a traced function, as the graph under construction knows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class Value:
    """One array: `name` in the graph, or `literal`, a number written in the code.

    `flipped` are axes along which the graph has it the other way around. `problem` says why the graph cannot have it
    at all, which matters only where something reads it.
    """

    shape: tuple[Any, ...]
    dtype: str
    name: str = ""
    literal: Any = None
    flipped: frozenset[int] = frozenset()
    problem: str = ""

    @property
    def is_number(self) -> bool:
        """Whether it is one number that is known now."""
        return self.literal is not None and self.shape == ()
