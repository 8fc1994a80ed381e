"""Files of encodings: one module a format (`isobit.formats.format`)."""

from __future__ import annotations

from isobit.formats.format import EncodingsFormat, FileContent
from isobit.formats.names import Names, Place

__all__ = [
    "EncodingsFormat",
    "FileContent",
    "Names",
    "Place",
]
