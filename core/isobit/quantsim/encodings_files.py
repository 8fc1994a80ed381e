"""Encodings from files and into files of any registered format, chosen by name or recognised by content."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from isobit.encodings.encoding import Encoding, Encodings
from isobit.errors import EncodingError
from isobit.formats.choosing import names_for
from isobit.graph.sites import Site
from isobit.plugins import registry


def read_encodings(path: str | PathLike[str], model: Any = None, *, format: str | None = None) -> Encodings:
    """The encodings in a file, by the sites of `model` (QuantSim, opened model, Graph or Names) if it is given.

    `format` is a name such as ``"aimet-1.0.0"``; unsaid, the content tells. What the file has and the model does not is
    in ``unmapped``, what could not be read as it stands in ``notes``. Raises EncodingError.
    """
    chosen = registry().format_of(path) if format is None else registry().format(format)
    return chosen.read(path, names_for(model, chosen))


def write_encodings(encodings: Encodings, path: str | PathLike[str], format: str, model: Any = None) -> list[str]:
    """Write encodings in the format of that name; returns what the file holds otherwise than asked.

    Formats other than isobit's own use the names and layouts of an ONNX model: they come from `model`.
    """
    chosen = registry().format(format)
    return chosen.write(encodings, Path(path), names_for(model, chosen))


def encodings_from(
    source: str | PathLike[str] | Mapping[Site, Encoding], model: Any, format: str | None
) -> tuple[Encodings, str]:
    """The encodings of a file, or those that are there already, and what to call where they come from."""
    if isinstance(source, str | PathLike):
        return read_encodings(source, model, format=format), fspath(source)
    if not isinstance(source, Mapping) or not all(isinstance(value, Encoding) for value in source.values()):
        raise EncodingError(f"encodings come from a path or from Encodings, not from {type(source).__name__}")
    return source if isinstance(source, Encodings) else Encodings(source), f"{len(source)} encodings"
