"""isobit's own encodings file: JSON, versioned, exact to the last bit of every scale."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from isobit.encoding import Encoding, Encodings
from isobit.errors import EncodingError, IsobitError, did_you_mean
from isobit.files import write_atomically
from isobit.quant_spec import QuantSpec
from isobit.sites import site_key, site_of

VERSION = 1

_FIELDS = ("kind", "name", "index", "format", "scale", "zero_point", "axis", "multiplier", "channel_scale")


class IsobitJson:
    """``{"format": "isobit encodings", "version": 1, "encodings": [...]}``; the schema is in docs/."""

    name = "isobit"

    def write(self, encodings: Encodings, path: str | Path) -> None:
        """Write a file, whole or not at all."""
        with write_atomically(Path(path)) as temporary:
            temporary.write_text(dumps(encodings), "utf-8")

    def read(self, path: str | Path) -> Encodings:
        """Read a file. Raises EncodingError naming the file, the entry and the field."""
        try:
            text = Path(path).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise EncodingError(f"cannot read encodings file {path}: {error}") from error
        return loads(text, str(path))


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
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EncodingError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(data, dict) or data.get("format") != "isobit encodings":
        raise EncodingError(f'{where}: not an isobit encodings file (its "format" is not "isobit encodings")')
    if data.get("version") != VERSION or isinstance(data.get("version"), bool):
        raise EncodingError(f"{where}: version {data.get('version')!r} is unknown; this isobit reads version {VERSION}")
    entries = data.get("encodings")
    if not isinstance(entries, list):
        raise EncodingError(f"{where}: encodings: must be a list")
    found = {}
    for number, entry in enumerate(entries):
        at = f"{where}: encodings[{number}]"
        if not isinstance(entry, dict):
            raise EncodingError(f"{at}: must be an object")
        if isinstance(entry.get("name"), str):
            at += f" ({entry['name']})"
        try:
            site = site_of(_text(entry, "kind"), _text(entry, "name"), _index(entry))
            encoding = _encoding(entry)
        except IsobitError as error:
            raise EncodingError(f"{at}: {error}") from error
        if site in found:
            raise EncodingError(f"{at}: a second entry for the same {entry['kind']}")
        found[site] = encoding
    return Encodings(found)


def _encoding(entry: Mapping[str, Any]) -> Encoding:
    for key in entry:
        if key not in _FIELDS:
            raise EncodingError(f"{key}: unknown field{did_you_mean(key, _FIELDS)}")
    spec = QuantSpec.parse(_text(entry, "format"))
    if spec.granularity is None:
        raise EncodingError("format: must say the granularity, for example 'uint8 asymmetric per-tensor'")
    axis = entry.get("axis")
    if axis is not None and (not isinstance(axis, int) or isinstance(axis, bool) or axis < 0):
        raise EncodingError(f"axis: must be a whole number from 0, found {axis!r}")
    multiplier, channel_scale = entry.get("multiplier"), entry.get("channel_scale")
    return Encoding(
        spec,
        _numbers(entry, "scale", np.float32),
        _numbers(entry, "zero_point", np.int32),
        axis,
        None if multiplier is None else _numbers(entry, "multiplier", np.int32),
        None if channel_scale is None else _numbers(entry, "channel_scale", np.float32),
    )


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise EncodingError(f"{key}: must be a text" if key in entry else f"{key}: this field is missing")
    return value


def _index(entry: Mapping[str, Any]) -> int:
    index = entry.get("index", 0)
    if not isinstance(index, int) or isinstance(index, bool) or index < 0:
        raise EncodingError(f"index: must be a whole number from 0, found {index!r}")
    return index


def _numbers(entry: Mapping[str, Any], key: str, dtype: type[np.float32] | type[np.int32]) -> Any:
    if key not in entry:
        raise EncodingError(f"{key}: this field is missing")
    try:
        array = np.asarray(entry[key])
    except (ValueError, OverflowError) as error:
        raise EncodingError(f"{key}: rows of different lengths, or no numbers") from error
    allowed = "iu" if dtype is np.int32 else "iuf"
    if array.dtype.kind not in allowed or array.size == 0:
        raise EncodingError(
            f"{key}: must be {'whole numbers' if dtype is np.int32 else 'numbers'}, found {str(entry[key])[:60]}"
        )
    limit = np.iinfo(np.int32).max if dtype is np.int32 else np.finfo(np.float32).max
    if np.any(np.abs(array.astype(np.float64)) > limit):
        raise EncodingError(f"{key}: out of the range of {np.dtype(dtype)}")
    return array.astype(dtype)
