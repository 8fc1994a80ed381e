"""The encodings of a file, as a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobit.cli.terminal import line, table, warn

if TYPE_CHECKING:
    from isobit.encodings.encoding import Encoding, Encodings
    from isobit.html_report import Section


@dataclass(frozen=True)
class FoundEncodings:
    """The encodings of a file of any format, quantized models among them."""

    path: Path
    format: str
    encodings: Encodings

    @classmethod
    def read(cls, path: Path) -> FoundEncodings:
        """Read them. Raises EncodingError."""
        from isobit.plugins import registry

        chosen = registry().format_of(path)
        return cls(path, chosen.name, chosen.read(path))

    def data(self) -> dict[str, Any]:
        """The format, and a record for each encoding."""
        return {"format": self.format, "encodings": encoding_records(self.encodings), "notes": self.encodings.notes}

    def sections(self) -> list[Section]:
        """The same table, and what was noted."""
        from isobit.html_report import encodings_table, notes

        told = [f"Format {self.format}.", *self.encodings.notes]
        return [encodings_table(self.encodings), notes("Notes", told)]

    def show(self, cap: int) -> None:
        """A table of them."""
        line(f"{self.path}: {len(self.encodings)} encodings in format {self.format}", style="bold")
        show_encodings(self.encodings, cap)
        for note in self.encodings.notes:
            warn(note)


def encoding_records(encodings: Encodings) -> list[dict[str, Any]]:
    """Each encoding as what JSON can hold."""
    from isobit.graph.sites import site_key

    return [{"kind": site_key(site)[0], "name": str(site), **_record(e)} for site, e in encodings.items()]


def show_encodings(encodings: Encodings, cap: int) -> None:
    """A table of at most `cap` encodings."""
    from isobit.html_report import ENCODING_TITLES, encoding_cells

    table(ENCODING_TITLES, encoding_cells(encodings, cap))
    if len(encodings) > cap:
        line(f"... and {len(encodings) - cap} more: --all lists them")


def _record(encoding: Encoding) -> dict[str, Any]:
    return {
        "format": str(encoding.spec),
        "scale": encoding.scale.astype(float).tolist(),
        "zero_point": encoding.zero_point.tolist(),
        "axis": encoding.axis,
        "minimum": float(encoding.minimum.min()),
        "maximum": float(encoding.maximum.max()),
    }
