"""Registries for tests: isobit's own plug-in, and no other one but those that a test names."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import entry_points
from typing import Any

from isobit.plugins import GROUP, Registry
from isobit.targets import Target

(OWN,) = entry_points(group=GROUP, name="isobit")


def own_registry(*points: Any) -> Registry:
    """isobit's own targets, schemes, techniques, recipes and formats, and what these entry points register."""
    return Registry([OWN, *points])


def rounds_all(name: str) -> Target:
    """One of isobit's targets that rounds all it can: nothing is in float for its costs, or is handed on in float."""
    return replace(own_registry().target(name), costs=(), float_results=frozenset())
