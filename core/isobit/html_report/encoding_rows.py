"""Encodings as a table of a page, and as the cells of one in a terminal."""

from __future__ import annotations

from isobit.encodings.encoding import Encoding, Encodings
from isobit.graph.sites import site_key
from isobit.html_report.page import Cell, Column, ColumnKind, Section, table

#: The titles of `encoding_cells`.
ENCODING_TITLES = ("site", "name", "format", "scale", "zero point", "range")


def encodings_table(encodings: Encodings, title: str = "Encodings") -> Section:
    """All encodings, to be sorted and searched; scales and ranges are sorted by their largest number."""
    rows: list[list[Cell]] = []
    for cells, encoding in zip(encoding_cells(encodings), encodings.values(), strict=True):
        kind, name, form, scale, zero_point, span = cells
        reach = float(abs(encoding.maximum).max()), float(abs(encoding.minimum).max())
        rows.append([kind, name, form, (scale, float(encoding.scale.max())), zero_point, (span, max(reach))])
    kinds: tuple[ColumnKind, ...] = ("", "name", "", "number", "number", "number")
    columns = [Column(name, kind) for name, kind in zip(ENCODING_TITLES, kinds, strict=True)]
    return table(title, columns, rows, filter="Filter by name, kind, format", none="There are none.")


def encoding_cells(encodings: Encodings, most: int | None = None) -> list[tuple[str, ...]]:
    """The texts of at most so many encodings."""
    return [
        (
            site_key(site)[0],
            str(site),
            short_format(e),
            _few(e, "scale"),
            _few(e, "zero_point"),
            f"[{e.minimum.min():.4g}, {e.maximum.max():.4g}]",
        )
        for site, e in list(encodings.items())[:most]
    ]


def short_format(encoding: Encoding) -> str:
    """The format without the symmetry that is the usual one (`isobit.encodings.quant_spec`), and without one scale."""
    spec = encoding.spec
    unsaid = " symmetric" if spec.dtype == "int" else " asymmetric"
    return str(spec).replace(unsaid, "").replace(" per-tensor", "")


def _few(encoding: Encoding, field: str) -> str:
    """The one value, or the lowest and highest of several."""
    values = getattr(encoding, field)
    if values.size == 1 or values.min() == values.max():
        return f"{values.flat[0]:.4g}"
    return f"{values.min():.3g}..{values.max():.3g}"
