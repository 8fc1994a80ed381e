"""A recipe written is the recipe read."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from isobit.recipes.recipe import Recipe, Step, parse_recipe
from isobit.techniques import FoldBatchNorms, SpatialSvd, Tucker2

TECHNIQUES = {"SpatialSvd": SpatialSvd, "Tucker2": Tucker2, "FoldBatchNorms": FoldBatchNorms}

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(
    name=names,
    ranks=st.dictionaries(names, st.integers(1, 99), max_size=3),
    two=st.dictionaries(names, st.just([3, 4])),
)
def test_what_is_written_is_read_again(name: str, ranks: dict[str, int], two: dict[str, list[int]]) -> None:
    steps = (
        Step(FoldBatchNorms, {}),
        Step(SpatialSvd, {"keep": 1.0, "ranks": ranks, "data_aware": False}, keep=True),
        Step(Tucker2, {"keep": 0.5, "ranks": two}, min_gain=0.5, optional=True),
    )
    recipe = Recipe(name, 'what "it" is\nfor', steps, 16, True)
    assert parse_recipe(recipe.to_toml(), "here", TECHNIQUES) == recipe
