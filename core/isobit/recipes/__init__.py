"""Recipes: which techniques run in which order, as data in TOML files."""

from __future__ import annotations

from isobit.recipes.recipe import Recipe, Step, StepResult, load_recipe, parse_recipe

__all__ = [
    "Recipe",
    "Step",
    "StepResult",
    "load_recipe",
    "parse_recipe",
]
