"""The encodings of a file, as a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobit.cli.terminal import line, table, warn

if TYPE_CHECKING:
    from isobit.encodings.encoding import Encoding, Encodings


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
    from isobit.graph.sites import site_key

    cells = [
        (
            site_key(site)[0],
            str(site),
            _short_format(e),
            _few(e, "scale"),
            _few(e, "zero_point"),
            f"[{e.minimum.min():.4g}, {e.maximum.max():.4g}]",
        )
        for site, e in list(encodings.items())[:cap]
    ]
    table(("site", "name", "format", "scale", "zero point", "range"), cells)
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


def _short_format(encoding: Encoding) -> str:
    """The format without the symmetry that is the default (`isobit.encodings.quant_spec`), and without one scale."""
    spec = encoding.spec
    unsaid = " symmetric" if spec.dtype == "int" else " asymmetric"
    return str(spec).replace(unsaid, "").replace(" per-tensor", "")


def _few(encoding: Encoding, field: str) -> str:
    """The one value, or the lowest and highest of several."""
    values = getattr(encoding, field)
    if values.size == 1 or values.min() == values.max():
        return f"{values.flat[0]:.4g}"
    return f"{values.min():.3g}..{values.max():.3g}"
