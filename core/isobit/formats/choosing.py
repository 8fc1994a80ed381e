"""Which format a file is of, by its content; and the names of a model that a format needs."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

from isobit.errors import EncodingError
from isobit.files import is_file, is_there
from isobit.formats.format import EncodingsFormat, FileContent
from isobit.formats.json_file import parse, read_text
from isobit.formats.names import Names


def format_of(
    path: str | PathLike[str], formats: Mapping[str, EncodingsFormat], *, if_none: str = ""
) -> EncodingsFormat:
    """The one of `formats` that recognises a file. Raises EncodingError when several do, or none: `if_none` ends it."""
    content = FileContent(path)
    if not is_file(content.path):
        problem = "it is not a file" if is_there(content.path) else "no such file"
        raise EncodingError(f"cannot read encodings file {content.where}: {problem}")
    claiming = [name for name, candidate in formats.items() if _recognises(candidate, content)]
    if len(claiming) > 1:
        raise EncodingError(f"{content.where}: formats {' and '.join(claiming)} both claim it: say which with format=")
    if claiming:
        return formats[claiming[0]]
    if content.may_be_json:
        parse(read_text(path), content.where)  # raises, where it is none
    known_formats = ", ".join(sorted(formats))
    raise EncodingError(f"{content.where}: no encodings file that is known; formats are {known_formats}{if_none}")


def _recognises(candidate: EncodingsFormat, content: FileContent) -> bool:
    try:
        return candidate.recognises(content)
    except Exception:  # a plug-in's format that fails on an unknown file must not stop the others
        return False


def names_for(model: Any, chosen: EncodingsFormat) -> Names | None:
    """The names of a model (QuantSim, opened model, Graph, or Names as they are) where the format uses any."""
    if model is None or isinstance(model, Names):
        return model
    return Names.of(model) if chosen.uses_names else None
