"""What a transfer found: encodings for the target, where each came from, and what could not be mapped, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from isobit.encodings.encoding import Encodings
from isobit.graph.sites import Site, site_key
from isobit.html_report import Cell, Column, Section, cards, encodings_table, notes, table


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

    def sections(self) -> list[Section]:
        """The same as parts of a page: what found no place first, then each encoding and where it came from."""
        figures = {
            "encodings for the target": str(len(self.encodings)),
            "of the source without a place": str(len(self.unmapped)),
            "of the target without an encoding": str(len(self.missing)),
        }
        lost = [*(("source", *_words(s), why) for s, why in self.unmapped.items())]
        lost += [("target", *_words(s), why) for s, why in self.missing.items()]
        moved: list[list[Cell]] = [
            [*_words(site), ", ".join(str(source) for source in sources)] for site, sources in self.mapped.items()
        ]
        lost_columns = [Column("of"), Column("site"), Column("name", "name"), Column("why", "words")]
        moved_columns = [Column("site"), Column("in the target", "name"), Column("in the source", "name")]
        return [
            cards(figures),
            table("Without a place", lost_columns, lost, none="Every encoding found its place."),
            table("Where each came from", moved_columns, moved, filter="Filter by name"),
            encodings_table(self.encodings),
            *([notes("Notes", self.notes)] if self.notes else []),
        ]

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
