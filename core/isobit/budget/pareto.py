"""The choices that no other one beats."""

from __future__ import annotations

from collections.abc import Iterable

from isobit.budget.candidate import Choice


def pareto(choices: Iterable[Choice]) -> tuple[Choice, ...]:
    """Those that have the least error of all that cost no more, in multiply-accumulates or in parameters.

    Dearest first; of those that are equal in both the first one stays, of equal errors each cost.
    """
    listed = list(choices)
    kept: set[int] = set()
    for unit in ("macs", "parameters"):
        least, last = float("inf"), -1.0
        for index in sorted(range(len(listed)), key=lambda i: (listed[i].cost.of(unit), listed[i].error)):
            error, cost = listed[index].error, listed[index].cost.of(unit)
            if error < least or (error == least and cost > last):
                least, last = error, cost
                kept.add(index)
    return tuple(listed[i] for i in sorted(kept, key=lambda i: (-listed[i].cost.macs, -listed[i].cost.parameters, i)))
