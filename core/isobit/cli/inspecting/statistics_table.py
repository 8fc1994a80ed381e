"""A statistics file: the ranges that were seen, and what else was observed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isobit.cli.terminal import line, table

if TYPE_CHECKING:
    from isobit.graph.sites import Site
    from isobit.html_report import Section
    from isobit.statistics.reducer import Reducer
    from isobit.statistics.statistics import Statistics


@dataclass(frozen=True)
class FoundStatistics:
    """What `QuantSim.save_statistics` wrote: a part for each model, or state of one, that was observed."""

    path: Path
    parts: list[Statistics]

    @classmethod
    def read(cls, path: Path) -> FoundStatistics:
        """Read it. Raises DataError."""
        from isobit.statistics.statistics import load_parts

        return cls(path, load_parts(path))

    def data(self) -> dict[str, Any]:
        """Each part with a record for each tensor."""
        return {"parts": [_part_data(part) for part in self.parts]}

    def sections(self) -> list[Section]:
        """The same tables."""
        from isobit.html_report import Cell, Column, notes
        from isobit.html_report import table as html_table

        columns = [
            Column("name", "name"),
            Column("kind"),
            *(Column(t, "number") for t in ("minimum", "maximum", "values")),
        ]
        found = []
        for part in self.parts:
            data = _part_data(part)
            rows: list[list[Cell]] = [
                [
                    row["name"],
                    row["kind"],
                    *((_number(row[end]), row[end]) for end in ("minimum", "maximum")),
                    (str(row["values"]), float(row["values"])),
                ]
                for row in data["tensors"]
            ]
            state = "" if data["complete"] else ", not all of the data"
            title = f"{len(part)} tensors over {data['batches']} batches{state}"
            found.append(html_table(title, columns, rows, filter="Filter by name"))
            told = [f"{text}, {count} tensor(s)" for text, count in data["further"].items()]
            found += [notes("For techniques", told)] if told else []
        return found

    def show(self, cap: int) -> None:
        """A table for each part."""
        for part in self.parts:
            data = _part_data(part)
            state = "" if data["complete"] else ", not all of the data"
            line(f"{self.path}: {len(part)} tensors over {data['batches']} batches{state}", style="bold")
            cells = [
                (row["name"], row["kind"], _number(row["minimum"]), _number(row["maximum"]), str(row["values"]))
                for row in data["tensors"][:cap]
            ]
            titles = ("name", "kind", "minimum", "maximum", "values")
            table(titles, cells, right=titles[2:])
            if len(part) > cap:
                line(f"... and {len(part) - cap} more: --all lists them")
            for text, count in data["further"].items():
                line(f"for techniques: {text}, {count} tensor(s)")


def _part_data(part: Statistics) -> dict[str, Any]:
    kinds = Counter(f"{key.kind} {key.stage} quantizers of the {key.model} model" for key in part.further)
    return {
        "batches": part.batches,
        "complete": part.is_complete,
        "model": part.model,
        "tensors": [_tensor_data(site, reducer) for site, reducer in part.items()],
        "further": dict(kinds),
    }


def _tensor_data(site: Site, reducer: Reducer) -> dict[str, Any]:
    from isobit.statistics.reducer import kind_of

    low = np.min(np.asarray(getattr(reducer, "minimum", np.nan), np.float64), initial=np.inf)
    high = np.max(np.asarray(getattr(reducer, "maximum", np.nan), np.float64), initial=-np.inf)
    values = getattr(reducer, "elements", getattr(reducer, "count", 0))
    finite = bool(np.isfinite(low) and np.isfinite(high))  # nothing was seen, or a kind without bounds
    return {
        "name": str(site),
        "kind": kind_of(reducer),
        "minimum": float(low) if finite else None,
        "maximum": float(high) if finite else None,
        "values": int(values),
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
