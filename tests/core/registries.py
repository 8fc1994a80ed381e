"""Registries for tests: isobit's own plug-in, and no other one but those that a test names."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from isobit.plugins import GROUP, Registry

(OWN,) = entry_points(group=GROUP, name="isobit")


def own_registry(*points: Any) -> Registry:
    """isobit's own targets, schemes, techniques, recipes and formats, and what these entry points register."""
    return Registry([OWN, *points])
