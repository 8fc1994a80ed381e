"""Reading and writing encodings files of any registered format, chosen by name or recognised by content."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path
from typing import Any

from isobit.encoding import Encodings
from isobit.errors import EncodingError, did_you_mean
from isobit.formats.format import EncodingsFormat, FileContent
from isobit.formats.names import Names
from isobit.plugins import registry


def format_named(name: str) -> EncodingsFormat:
    """The registered format of that name. Raises EncodingError."""
    formats = registry().formats()
    if name not in formats:
        known = ", ".join(sorted(formats))
        raise EncodingError(f"no encodings format {name!r}{did_you_mean(str(name), formats)}; known are {known}")
    return formats[name]


def format_of(path: str | PathLike[str]) -> EncodingsFormat:
    """The format that recognises a file. Raises EncodingError when none or several do."""
    content = FileContent(path)
    if not content.path.is_file():
        raise EncodingError(f"cannot read encodings file {fspath(path)}: no such file")
    formats = registry().formats()
    found = [name for name, candidate in formats.items() if _recognises(candidate, content)]
    if len(found) > 1:
        raise EncodingError(f"{fspath(path)}: formats {' and '.join(found)} both claim it: say which with format=")
    if not found:
        _explain(content, sorted(formats))
    return format_named(found[0])


def _recognises(candidate: EncodingsFormat, content: FileContent) -> bool:
    try:
        return candidate.recognises(content)
    except Exception:  # a stranger's format that fails on a file it does not know stops no other one
        return False


def _explain(content: FileContent, known: list[str]) -> None:
    """Say why a file is of no format: first that it is no JSON, if it looks like one."""
    from isobit.formats.json_file import parse, read_text

    if content.path.suffix.lower() != ".onnx":
        parse(read_text(content.path), content.where)
    raise EncodingError(f"{content.where}: no encodings file that is known; formats are {', '.join(known)}")


def read_encodings(path: str | PathLike[str], model: Any = None, *, format: str | None = None) -> Encodings:
    """The encodings in a file, by the sites of `model` (QuantSim, opened model, Graph or Names) if it is given.

    `format` is a name such as ``"aimet-1.0.0"``; unsaid, the content tells. What the file has and the model does not is
    in ``unmapped``, what could not be read as it stands in ``notes``. Raises EncodingError.
    """
    chosen = format_of(path) if format is None else format_named(format)
    return chosen.read(path, _names(model, chosen))


def write_encodings(encodings: Encodings, path: str | PathLike[str], format: str, model: Any = None) -> list[str]:
    """Write encodings in the format of that name; returns what the file holds otherwise than asked.

    Formats other than isobit's own use the names and layouts of an ONNX model: they come from `model`.
    """
    chosen = format_named(format)
    return chosen.write(encodings, Path(path), _names(model, chosen))


def _names(model: Any, chosen: EncodingsFormat) -> Names | None:
    if model is None or isinstance(model, Names):
        return model
    return Names.of(model) if chosen.uses_names else None
