"""What a format of encodings files is: the contract of the hook ``isobit_formats``."""

from __future__ import annotations

from functools import cached_property
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Protocol

from isobit.encodings.encoding import Encodings
from isobit.errors import EncodingError
from isobit.formats.json_file import parse, read_text
from isobit.formats.names import Names


class FileContent:
    """A file that formats look at to recognise it; read once for all of them."""

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        self.where = fspath(path)

    @cached_property
    def may_be_json(self) -> bool:
        """Whether the file begins as a text does: an ONNX model does not, and need not be read to find out."""
        try:
            with self.path.open("rb") as file:
                first_byte = file.read(1)
        except OSError:
            return True  # reading it whole says what is wrong
        return not first_byte or first_byte >= b"\t"

    @cached_property
    def json(self) -> Any:
        """The file as JSON, None where it is none."""
        try:
            return parse(read_text(self.path), self.where) if self.may_be_json else None
        except EncodingError:
            return None


class EncodingsFormat(Protocol):
    """A kind of file that holds encodings. A class that derives from it need not say what has a default here.

    `names` says where the names of the file are in a model. A format that uses names or layouts of its own needs it;
    without it names are taken as they are.
    """

    @property
    def name(self) -> str:
        """Unique; what users write as ``format=``."""
        ...

    @property
    def suffix(self) -> str:
        """The ending that its files usually have."""
        ...

    def recognises(self, content: FileContent) -> bool:
        """Whether a file is one of this kind, in any version of it: the right version is `read`'s business."""
        ...

    def read(self, path: str | PathLike[str], names: Names | None = None) -> Encodings:
        """Read a file. Raises EncodingError naming the file, the entry and the field."""
        ...

    def write(self, encodings: Encodings, path: str | PathLike[str], names: Names | None = None) -> list[str]:
        """Write a file, whole or not at all; returns notes on what it holds otherwise than asked.

        Raises EncodingError for what the format cannot hold.
        """
        ...

    @property
    def uses_names(self) -> bool:
        """Whether its files have names and layouts of their own; making `Names` may mean an ONNX export."""
        return False

    @property
    def omitted_types(self) -> tuple[str, ...]:
        """Types of numbers, such as ``"int32"``, that its files never hold, because their readers do not need them."""
        return ()

    @property
    def omits_moved_tensors(self) -> bool:
        """Whether its files leave out tensors that only hold values of another one and have its encoding."""
        return False
