"""isobit's own encodings file: JSON, versioned, exact to the last bit of every scale."""

from __future__ import annotations

import json
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from isobit.encodings.encoding import Encoding, Encodings
from isobit.encodings.quant_spec import QuantSpec
from isobit.errors import EncodingError, IsobitError
from isobit.files import write_atomically
from isobit.formats.format import EncodingsFormat, FileContent
from isobit.formats.json_file import Fields, parse, read_text
from isobit.formats.names import Names
from isobit.graph.sites import Site, site_key, site_of

VERSION = 1

_FIELDS = ("kind", "name", "index", "format", "scale", "zero_point", "axis", "multiplier", "channel_scale")


class IsobitJson(EncodingsFormat):
    """``{"format": "isobit encodings", "version": 1, "encodings": [...]}``; the schema is in docs/."""

    name = "isobit"
    suffix = ".json"

    def write(self, encodings: Encodings, path: str | PathLike[str], names: Names | None = None) -> list[str]:
        """Write a file, whole or not at all. It holds every encoding, so there is nothing to note."""
        with write_atomically(Path(path)) as temporary:
            temporary.write_text(dumps(encodings), "utf-8")
        return []

    def recognises(self, content: FileContent) -> bool:
        """Whether the file says that it is one."""
        return isinstance(content.json, dict) and content.json.get("format") == "isobit encodings"

    def read(self, path: str | PathLike[str], names: Names | None = None) -> Encodings:
        """Read a file. Raises EncodingError naming the file, the entry and the field."""
        return loads(read_text(path), fspath(path))


def dumps(encodings: Encodings) -> str:
    """The text of an encodings file; each float32 is written as the double of the same value, so none loses a bit."""
    entries = []
    for site, encoding in encodings.items():
        kind, name, index = site_key(site)
        entry: dict[str, Any] = {"kind": kind, "name": name}
        if kind == "input":
            entry["index"] = index
        entry["format"] = str(encoding.spec)
        entry["scale"] = encoding.scale.astype(np.float64).tolist()
        entry["zero_point"] = encoding.zero_point.tolist()
        if encoding.axis is not None:
            entry["axis"] = encoding.axis
        if encoding.multiplier is not None and encoding.channel_scale is not None:
            entry["multiplier"] = encoding.multiplier.tolist()
            entry["channel_scale"] = encoding.channel_scale.astype(np.float64).tolist()
        entries.append(json.dumps(entry))
    head = f'{{"format": "isobit encodings", "version": {VERSION}, "encodings": [\n'
    return head + ",\n".join(entries) + "\n]}\n"


def loads(text: str, where: str) -> Encodings:
    """Encodings from the text of a file; `where` names it in errors."""
    data = parse(text, where)
    if not isinstance(data, dict) or data.get("format") != "isobit encodings":
        raise EncodingError(f'{where}: not an isobit encodings file (its "format" is not "isobit encodings")')
    if data.get("version") != VERSION or isinstance(data.get("version"), bool):
        raise EncodingError(f"{where}: version {data.get('version')!r} is unknown; this isobit reads version {VERSION}")
    encodings: dict[Site, Encoding] = {}
    for number, entry in enumerate(Fields(data, where).array("encodings")):
        fields = Fields(entry, f"{where}: encodings[{number}]")
        if isinstance(entry.get("name"), str):
            fields.at += f" ({entry['name']})"
        index = fields.whole("index", 0) if "index" in fields else 0
        try:
            site = site_of(fields.text("kind"), fields.text("name"), index)
            encoding = _encoding(fields)
        except IsobitError as error:
            raise error if str(error).startswith(fields.at) else EncodingError(f"{fields.at}: {error}") from error
        if site in encodings:
            raise EncodingError(f"{fields.at}: a second entry for the same {entry['kind']}")
        encodings[site] = encoding
    return Encodings(encodings)


def _encoding(fields: Fields) -> Encoding:
    fields.only(_FIELDS)
    spec = QuantSpec.parse(fields.text("format"))
    if spec.granularity is None:
        raise fields.error("format", "must say the granularity, for example 'uint8 asymmetric per-tensor'")
    present = {key for key in ("axis", "multiplier", "channel_scale") if fields.data.get(key) is not None}
    return Encoding(
        spec,
        fields.numbers("scale"),
        fields.wholes("zero_point"),
        fields.whole("axis", 0) if "axis" in present else None,
        fields.wholes("multiplier") if "multiplier" in present else None,
        fields.numbers("channel_scale") if "channel_scale" in present else None,
    )
