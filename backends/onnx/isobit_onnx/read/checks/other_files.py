"""What a file is that has the name of an ONNX model and is none: archives, pointers, web pages, arrays."""

from __future__ import annotations

from pathlib import Path

_KINDS = (
    (b"PK\x03\x04", "is a zip archive: unpack it and give the .onnx file inside"),
    (b"\x1f\x8b", "is compressed with gzip: unpack it with gunzip"),
    (b"\xfd7zXZ\x00", "is compressed with xz: unpack it with unxz"),
    (b"version https://git-lfs", "is a pointer of Git LFS, not the model: run git lfs pull"),
    (b"\x93NUMPY", "is a NumPy array, not a model"),
    (b"\x89HDF\r\n", "is an HDF5 file, of Keras for example, not an ONNX model"),
    (b"<", "is a web page or XML, not a model: download the file itself"),
    (b"{", "is JSON, not an ONNX model"),
)


def what_else(path: Path) -> str | None:
    """What a file is in place of a model, and what to do; None where its first bytes do not tell."""
    with path.open("rb") as file:
        begin = file.read(32)
    if not begin:
        return "is empty: download or export it again"
    return next((text for start, text in _KINDS if begin.startswith(start)), None)
