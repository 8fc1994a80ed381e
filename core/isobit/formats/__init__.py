"""Files of encodings: one module a format (`isobit.formats.format`), read and written by name or content."""

from isobit.formats.choosing import read_encodings, write_encodings

__all__ = ["read_encodings", "write_encodings"]
