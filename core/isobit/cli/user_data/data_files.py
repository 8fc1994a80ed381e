"""DataFiles: data that was read from files, with what is known of the files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobit.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class DataFiles:
    """Data read from `path`: `source` is what Dataset takes, `notes` says how the files were read.

    `labels` are those of each output that has some, by its name, in the order of the outputs.
    """

    path: Path
    source: Any
    labels: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    where: Callable[[], str] | None = None

    @contextmanager
    def named(self) -> Iterator[None]:
        """Put the file's name before the message of a DataError."""
        try:
            yield
        except DataError as error:
            where = self.where() if self.where is not None else str(self.path)
            message = str(error).replace("pass ignore_non_finite=True", "pass --ignore-non-finite")
            raise DataError(message if message.startswith(where) else f"{where}: {message}") from error
