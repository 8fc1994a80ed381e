"""What a backend has made of parts of a graph, those that were used last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from isobit.graph.graph import Graph

Made = TypeVar("Made")

#: So many are kept.
_MOST = 64


class KeptParts(Generic[Made]):
    """One object for each part, made when it is first asked for.

    It refers to no model: one that holds this goes, with all that was made for it, when it is done with.
    """

    def __init__(self) -> None:
        self._made: OrderedDict[Graph, Made] = OrderedDict()

    def of(self, part: Graph, make: Callable[[Graph], Made]) -> Made:
        """That of a part, by `make` where there is none yet; of too many, the one longest not used goes."""
        if part not in self._made:
            while len(self._made) >= _MOST:
                self._made.popitem(last=False)
            self._made[part] = make(part)
        self._made.move_to_end(part)
        return self._made[part]

    def clear(self) -> None:
        """Let all go: the model is another one."""
        self._made.clear()
