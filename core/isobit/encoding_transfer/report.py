"""What a transfer found: encodings for the target, where each came from, and what could not be mapped, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from isobit.encodings.encoding import Encodings
from isobit.graph.sites import Site, site_key


@dataclass(frozen=True, eq=False)
class Transfer:
    """`encodings` belong to the target.

    `mapped` are the sites of the source that each site of the target has its encoding from. `unmapped` are sites of the
    source that went nowhere, `missing` those that the target quantizes (where its plan is known) and the source has
    no encoding for, each with the reason.
    """

    encodings: Encodings
    mapped: Mapping[Site, tuple[Site, ...]]
    unmapped: Mapping[Site, str] = field(default_factory=dict)
    missing: Mapping[Site, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every encoding found its place, and every place its encoding."""
        return not self.unmapped and not self.missing

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "mapped": [{"target": _site(s), "source": [_site(o) for o in origin]} for s, origin in self.mapped.items()],
            "unmapped": [{"source": _site(site), "reason": reason} for site, reason in self.unmapped.items()],
            "missing": [{"target": _site(site), "reason": reason} for site, reason in self.missing.items()],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = [f"{len(self.encodings)} encodings for the target, {len(self.unmapped)} of the source not mapped"]
        lines += [f"  {' '.join(_words(site))}: {reason}" for site, reason in self.unmapped.items()]
        if self.missing:
            lines.append(f"{len(self.missing)} sites of the target without an encoding")
            lines += [f"  {' '.join(_words(site))}: {reason}" for site, reason in self.missing.items()]
        return "\n".join([*lines, *self.notes])


def _site(site: Site) -> dict[str, Any]:
    kind, name, index = site_key(site)
    return {"kind": kind, "name": name, **({"index": index} if kind == "input" else {})}


def _words(site: Site) -> tuple[str, str]:
    return site_key(site)[0], str(site)
