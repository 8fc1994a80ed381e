"""Which format for each group: an integer program of the costs and the noise, solved by HiGHS (`scipy.optimize.milp`).

One binary variable for each group and format. What two groups cost together is a variable for each two formats whose
sums are those of the groups (the local polytope): with binary choices they are products, so that the solution is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.errors import ModelError
from isobit.search.operations import Costs, Floats

#: Nodes of the search tree of one program: a count, and no time, so that every machine finds the same.
_NODES = 20_000

#: Of the sum of the noise of groups so much is left however their errors cancel, for what they do is not known exactly.
_LEFT = 0.05

#: How far above the bound the least cost may be that is taken for it.
_GAP = 1e-6


@dataclass(frozen=True, eq=False)
class Program:
    """Groups with costs and noise; `noise` is infinite where a group cannot have a format.

    `crossed` is noise that two groups have beside their sum, a table of formats for each such pair.
    """

    costs: Costs
    noise: Floats
    crossed: Mapping[tuple[int, int], Floats] = field(default_factory=dict)

    def cheapest(self) -> tuple[int, ...]:
        """The least cost, and among equals the least noise."""
        return self._quietest_within(self.costs.of(self.within(None)))

    def within(self, noise: float | None) -> tuple[int, ...]:
        """The least cost with this noise at most; the quietest choice where none has so little."""
        if noise is not None and noise <= self.least_noise * (1 + 1e-9):
            return self.quietest()
        if noise is None:
            return self._solve(self._cost_row, [])
        # What is above the bound beside any others cannot be: large numbers are no good to a solver.
        quiet = self._least_in_company <= noise * (1 + 1e-9)
        row = np.where(np.abs(self._noise_row) > 0, self._noise_row / noise, 0.0)
        row[: quiet.size][~quiet.ravel()] = 2.0
        return self._solve(self._cost_row, [(row, 1.0)], quiet)

    def quietest(self, budget: float | None = None) -> tuple[int, ...]:
        """The least noise at this cost at most, and among equals the least cost. Raises ModelError where none is."""
        quiet = self.noise <= self.noise.min(axis=1, keepdims=True) * (1 + 1e-9)
        found = self._solve(self._cost_row, [], quiet)
        return found if budget is None or self.costs.of(found) <= budget else self._quietest_within(budget)

    def noise_of(self, choice: tuple[int, ...]) -> float:
        """The noise of a choice: that of the groups together, and of those whose errors are alike or cancel."""
        singles = float(sum(self.noise[group, index] for group, index in enumerate(choice)))
        crossed = sum(float(table[choice[a], choice[b]]) for (a, b), table in self.crossed.items())
        return max(singles + crossed, _LEFT * singles)

    @cached_property
    def least_noise(self) -> float:
        """What is left where every group has its quietest format."""
        return self.noise_of(self.quietest())

    @cached_property
    def _least_in_company(self) -> Floats:
        """The noise that a group in a format brings at least, with all that take from it."""
        least = np.array(self.noise)
        for (a, b), table in self.crossed.items():
            least[a] += np.minimum(table, 0.0).min(axis=1)
            least[b] += np.minimum(table, 0.0).min(axis=0)
        return least

    def _quietest_within(self, budget: float) -> tuple[int, ...]:
        scale = max(abs(budget), 1e-300)
        unit = float(self._noise_row.max(initial=0.0)) or 1.0
        slack = 1e-9 if budget else 1e-6
        return self._solve(self._noise_row / unit, [(self._cost_row / scale, budget / scale + slack)])

    @cached_property
    def _is_allowed(self) -> NDArray[np.bool_]:
        return np.asarray(np.isfinite(self.noise))

    @cached_property
    def _cost_row(self) -> Floats:
        none = np.zeros((self.noise.shape[1],) * 2)
        return np.concatenate(
            [self.costs.single.ravel(), *(self.costs.pairs.get(p, none).ravel() for p in self._pairs)]
        )

    @cached_property
    def _noise_row(self) -> Floats:
        finite = np.where(self._is_allowed, self.noise, 0.0).ravel()
        none = np.zeros((self.noise.shape[1],) * 2)
        return np.concatenate([finite, *(self.crossed.get(pair, none).ravel() for pair in self._pairs)])

    @cached_property
    def _pairs(self) -> list[tuple[int, int]]:
        """Two groups that cost something together, or whose errors meet."""
        return list(dict.fromkeys([*self.costs.pairs, *self.crossed]))

    @cached_property
    def _structure(self) -> tuple[Any, Floats]:
        """One format a group, and pairs that add up to their groups."""
        from scipy.sparse import csr_array

        groups, formats = self.noise.shape
        rows: list[int] = []
        columns: list[int] = []
        values: list[float] = []
        right: list[float] = []

        def row(entries: list[tuple[int, float]], equals: float) -> None:
            for column, value in entries:
                rows.append(len(right))
                columns.append(column)
                values.append(value)
            right.append(equals)

        for group in range(groups):
            row([(group * formats + index, 1.0) for index in range(formats)], 1.0)
        start = groups * formats
        for first, second in self._pairs:
            for index in range(formats):
                here = [(start + index * formats + other, 1.0) for other in range(formats)]
                row([*here, (first * formats + index, -1.0)], 0.0)
                here = [(start + other * formats + index, 1.0) for other in range(formats)]
                row([*here, (second * formats + index, -1.0)], 0.0)
            start += formats * formats
        shape = (len(right), self._cost_row.size)
        places = np.array(rows, np.int32), np.array(columns, np.int32)  # scipy 1.13 takes no wider indices
        return csr_array((values, places), shape=shape), np.array(right)

    def _solve(
        self, objective: Floats, rows: list[tuple[Floats, float]], allowed: NDArray[np.bool_] | None = None
    ) -> tuple[int, ...]:
        from scipy.optimize import Bounds, LinearConstraint, milp

        groups, formats = self.noise.shape
        if not groups:
            return ()
        matrix, right = self._structure
        allowed = self._is_allowed if allowed is None else allowed & self._is_allowed
        upper = np.ones(objective.size)
        upper[: groups * formats] = allowed.ravel()
        integral = np.zeros(objective.size)
        integral[: groups * formats] = 1
        scale = float(np.abs(objective).max()) or 1.0
        constraints = [LinearConstraint(matrix, right, right)]
        constraints += [LinearConstraint(row[None], -np.inf, limit) for row, limit in rows]
        found = milp(
            objective / scale,
            integrality=integral,
            bounds=Bounds(np.zeros(objective.size), upper),
            constraints=constraints,
            options={"node_limit": _NODES, "mip_rel_gap": _GAP},
        )
        if found.x is None:
            raise ModelError(f"no choice of formats keeps to these bounds ({found.message})")
        chosen = found.x[: groups * formats].reshape(groups, formats)
        return tuple(int(index) for index in np.where(allowed, chosen, -1).argmax(axis=1))
