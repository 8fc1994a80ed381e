"""Data as files: .npz, .npy, a folder of them, an image, a folder of images. Found out here, read beside it.

What comes out is data that `isobit.data.Dataset` takes and checks; here every error gets the name of its file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobit.cli.image_options import ImageOptions
from isobit.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from isobit.graph import Graph

ARRAYS = (".npz", ".npy")
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


@dataclass(frozen=True)
class DataFiles:
    """Data read from `path`: `source` is what Dataset takes, `notes` says how the files were read."""

    path: Path
    source: Any
    labels: NDArray[np.generic] | None = None
    notes: list[str] = field(default_factory=list)
    where: Callable[[], str] | None = None

    @contextmanager
    def named(self) -> Iterator[None]:
        """Put the file's name before the message of a DataError."""
        try:
            yield
        except DataError as error:
            where = self.where() if self.where is not None else str(self.path)
            message = str(error).replace("ask to ignore it", "pass --ignore-non-finite")
            raise DataError(message if message.startswith(where) else f"{where}: {message}") from error


def load(
    path: Path, graph: Graph, images: ImageOptions, *, batch_size: int = 32, samples: int | None = None
) -> DataFiles:
    """The data at `path` for the model's inputs; at most `samples` of them. Raises DataError naming the file."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    files, kind = _files(path)
    if kind == "images":
        from isobit.cli.image_files import load_images

        return load_images(path, files, graph, images, batch_size, samples)
    from isobit.cli.array_files import load_array_file, load_array_folder

    if path.is_dir():
        return load_array_folder(path, files, graph, batch_size, samples)
    return load_array_file(path, graph, samples)


def holds_images(path: Path) -> bool:
    """Whether the data at `path` is images, by the names of its files."""
    return path.exists() and _files(path)[1] == "images"


def _files(path: Path) -> tuple[list[Path], str]:
    """The data files at `path`, sorted by name, and whether they are ``arrays`` or ``images``."""
    if not path.is_dir():
        kind = _kind(path)
        if kind is None:
            raise DataError(f"{path}: not a known kind of data; known endings are {', '.join((*ARRAYS, *IMAGES))}")
        return [path], kind
    try:
        inside = sorted(item for item in path.iterdir() if not item.name.startswith("."))
    except OSError as error:
        raise DataError(f"{path}: the folder cannot be read: {error.strerror}") from error
    found = [item for item in inside if item.is_file() and _kind(item) is not None]
    if not found:
        folders = sum(item.is_dir() for item in inside)
        hint = f"; its {folders} folder(s) are not searched: name one of them" if folders else ""
        raise DataError(f"{path}: the folder holds no data: no file ends in {', '.join((*ARRAYS, *IMAGES))}{hint}")
    first = _kind(found[0])
    other = next((item for item in found if _kind(item) != first), None)
    if other is not None:
        raise DataError(
            f"{path}: the folder mixes arrays and images ({found[0].name}, {other.name}): put them into two folders"
        )
    return found, str(first)


def _kind(path: Path) -> str | None:
    ending = path.suffix.lower()
    return "arrays" if ending in ARRAYS else "images" if ending in IMAGES else None
