"""The cheapest division of nodes into two sides: a minimum cut (Greig, Porteous and Seheult, 1989), exactly."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

#: Costs become whole numbers of about so many parts in all, which 32 bits hold.
_PARTS = 1e8
_FORBIDDEN = 1_000_000_000


class CheapestCut:
    """Costs that are paid where one thing runs on integers and another in float.

    `INTEGERS` and `FLOAT` are the two sides themselves, so that ``add(INTEGERS, x, cost)`` is paid where `x` is in
    float, and ``add(x, FLOAT, cost)`` where it is on integers.
    """

    INTEGERS: Hashable = ("side", "integers")
    FLOAT: Hashable = ("side", "float")

    def __init__(self) -> None:
        self._index: dict[Hashable, int] = {self.INTEGERS: 0, self.FLOAT: 1}
        self._costs: dict[tuple[int, int], float] = {}
        self._forbidden: set[tuple[int, int]] = set()

    def add(self, on_integers: Hashable, in_float: Hashable, cost: float) -> None:
        """A cost, 0 or more, of having the one on integers and the other in float."""
        pair = self._of(on_integers), self._of(in_float)
        self._costs[pair] = self._costs.get(pair, 0.0) + cost

    def forbid(self, on_integers: Hashable, in_float: Hashable) -> None:
        """Never the one on integers and the other in float."""
        self._forbidden.add((self._of(on_integers), self._of(in_float)))

    def integers(self) -> frozenset[Hashable]:
        """All that is on integers in the cheapest division; of several, the one with fewest on integers."""
        total = sum(self._costs.values())
        scale = _PARTS / total if total else 1.0
        capacity = {pair: round(cost * scale) for pair, cost in self._costs.items()}
        capacity.update(dict.fromkeys(self._forbidden, _FORBIDDEN))
        size = len(self._index)
        pairs = np.array(list(capacity), np.int32).reshape(-1, 2)
        values = np.array(list(capacity.values()), np.int32)
        edges = csr_array((values, (pairs[:, 0], pairs[:, 1])), shape=(size, size))
        left = edges - maximum_flow(edges, 0, 1).flow
        left.data[left.data < 0] = 0
        left.eliminate_zeros()
        reached = set(breadth_first_order(left, 0, return_predecessors=False).tolist())
        return frozenset(name for name, index in self._index.items() if index in reached)

    def cost(self, integers: frozenset[Hashable]) -> float:
        """What a division costs."""
        names = list(self._index)
        return sum(
            cost
            for (one, other), cost in self._costs.items()
            if names[one] in integers and names[other] not in integers
        )

    def _of(self, name: Hashable) -> int:
        return self._index.setdefault(name, len(self._index))
