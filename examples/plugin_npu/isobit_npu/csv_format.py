"""The table that the NPU's compiler reads: one line a channel."""

from __future__ import annotations

import csv
from os import PathLike
from pathlib import Path
from typing import Any

from isobit.encodings import Encoding, Encodings
from isobit.errors import EncodingError, IsobitError
from isobit.files import write_atomically
from isobit.formats import EncodingsFormat, FileContent
from isobit.graph import site_key, site_of

_HEAD = ["kind", "name", "index", "format", "axis", "scale", "zero_point"]


class NpuCsv(EncodingsFormat):
    """``kind,name,index,format,axis,scale,zero_point``."""

    name = "npu-csv"
    suffix = ".csv"

    def recognises(self, content: FileContent) -> bool:
        """Whether a file begins with the head of such a table."""
        with content.path.open("rb") as file:
            return file.readline().strip() == ",".join(_HEAD).encode()

    def write(self, encodings: Encodings, path: str | PathLike[str], names: Any = None) -> list[str]:
        """Write a file, whole or not at all. Raises EncodingError for blocks, which the NPU has not."""
        with write_atomically(Path(path)) as temporary, temporary.open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(_HEAD)
            for site, encoding in encodings.items():
                if encoding.scale.ndim > 1:
                    raise EncodingError(f"{str(site)!r} has one scale a block, and the NPU one a channel")
                axis = "" if encoding.axis is None else encoding.axis
                for scale, zero in zip(encoding.scale.flat, encoding.zero_point.flat, strict=True):
                    table.writerow([*site_key(site), encoding.spec, axis, repr(float(scale)), int(zero)])
        return []

    def read(self, path: str | PathLike[str], names: Any = None) -> Encodings:
        """Read a file. Raises EncodingError naming the file and the line."""
        rows: dict[Any, list[Any]] = {}
        with Path(path).open(newline="") as file:
            for number, row in enumerate(csv.DictReader(file), 2):
                try:
                    site = site_of(row["kind"], row["name"], int(row["index"]))
                    values = (row["format"], row["axis"], float(row["scale"]), int(row["zero_point"]))
                except (ValueError, KeyError, TypeError, IsobitError) as error:
                    raise EncodingError(f"{path}: line {number}: not a row of an NPU table: {error}") from error
                rows.setdefault(site, []).append(values)
        return Encodings({site: _encoding(values) for site, values in rows.items()})


def _encoding(rows: list[Any]) -> Encoding:
    (form, axis, *_), (*_, scales, zeros) = rows[0], zip(*rows, strict=True)
    return Encoding.of(form, scales[0], zeros[0]) if axis == "" else Encoding.of(form, scales, zeros, int(axis))
