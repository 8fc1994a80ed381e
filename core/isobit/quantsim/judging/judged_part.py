"""Which part of the data judges the steps of a recipe: a rule of sizes alone, for those who run or foretell it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from isobit.recipes.recipe import Recipe

#: At most one of so many batches is held back from fitting, and none where these hold fewer samples than that.
_PART, _FEWEST = 4, 16

#: So many samples judge at most beyond those that were asked for, and one of so many batches.
_FINEST, _SHARE = 64, 8


@dataclass(frozen=True)
class JudgedPart:
    """So many batches, which hold so many samples; held back from fitting, or not."""

    batches: int
    samples: int
    is_held_back: bool


def judged_part(recipe: Recipe, sizes: Iterable[int], batches: int, *, may_hold_back: bool = True) -> JudgedPart:
    """Of data with these samples in its batches, of which there are so many (0: not known).

    Whole batches, until they hold as many samples as the recipe judges by. Half of them do where that is a quarter of
    the data or more: every scheme and state that is judged runs them all. An eighth of much data, up to 64, tells
    schemes apart that are nearly alike. `sizes` is read no further.
    """
    wanted, taken = recipe.judge_samples, list[int]()
    for size in sizes:
        taken.append(size)
        held = sum(taken)
        enough = max(wanted, min(_FINEST, held * batches // (len(taken) * _SHARE)))
        if held >= enough or (2 * held >= wanted and len(taken) * _PART >= batches > 0):
            break
    apart = taken[: batches // _PART]
    if recipe.hold_back and may_hold_back and sum(apart) >= _FEWEST:
        return JudgedPart(len(apart), sum(apart), True)
    return JudgedPart(len(taken), sum(taken), False)
