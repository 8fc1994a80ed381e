"""Why each group has its format."""

from __future__ import annotations

from collections.abc import Sequence

from isobit.search.formats import Candidate
from isobit.search.groups import Groups
from isobit.search.integer_program import Program
from isobit.search.mixed_result import GroupFormat


def explained(
    groups: Groups, program: Program, formats: Sequence[Candidate], current: Candidate, chosen: tuple[int, ...]
) -> tuple[GroupFormat, ...]:
    """Each group with its format; `why` is empty where it keeps the one that it has."""
    column = list(formats).index(current)
    total = sum(_noise(program, index, column) for index in range(len(groups.all))) or 1.0
    found = []
    for index, group in enumerate(groups.all):
        share = _noise(program, index, column) / total
        why = group.kept if group.kept else _why(program, formats, chosen, index, column, share)
        found.append(
            GroupFormat(
                group.name,
                formats[chosen[index]].name,
                why,
                share,
                tuple(str(placement.site) for placement in group.placements),
                tuple(node.name for node in group.nodes),
            )
        )
    return tuple(found)


def _noise(program: Program, group: int, column: int) -> float:
    value = float(program.noise[group, column])
    return value if value < float("inf") else 0.0


def _why(
    program: Program, formats: Sequence[Candidate], chosen: tuple[int, ...], group: int, column: int, share: float
) -> str:
    """What the group gains by its format, and what that costs beside its neighbours."""
    if chosen[group] == column:
        return ""
    before = tuple(column if index == group else choice for index, choice in enumerate(chosen))
    cost = program.costs.of(chosen)
    more = (cost - program.costs.of(before)) / cost if cost else 0.0
    name = formats[column].name
    if chosen[group] < column:
        return f"saves {_percent(-more)} of the cost beside {name}"
    if more <= 0:
        return f"no dearer than {name}, by the conversions to its neighbours ({_percent(share)} of the error in {name})"
    left = float(program.noise[group, chosen[group]]) / max(float(program.noise[group, column]), 1e-300)
    return (
        f"{_percent(share)} of the error in {name}, of which {_percent(min(left, 1.0))} is left; "
        f"{_percent(more)} of the cost"
    )


def _percent(share: float) -> str:
    if 0 < abs(share) < 1e-4:
        return "under 0.01 %"
    return f"{100 * share:.2g} %" if abs(share) < 0.1 else f"{100 * share:.0f} %"
