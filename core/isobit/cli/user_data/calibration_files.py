"""Data as files: .npz, .npy, a folder of them, an image, a folder of images: which of them a path is.

What comes out is data that `isobit.data.Dataset` takes and checks.
"""

from __future__ import annotations

from pathlib import Path

from isobit.cli.user_data.array_files import load_array_file, load_array_folder
from isobit.cli.user_data.data_files import DataFiles
from isobit.cli.user_data.image_files import load_images
from isobit.cli.user_data.image_options import ImageOptions
from isobit.errors import DataError
from isobit.files import is_there
from isobit.graph.graph import Graph

ARRAYS = (".npz", ".npy")
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def load(
    path: Path, graph: Graph, images: ImageOptions, *, batch_size: int = 32, samples: int | None = None
) -> DataFiles:
    """The data at `path` for the model's inputs; at most `samples` of them. Raises DataError naming the file."""
    if not is_there(path):
        raise DataError(f"{path}: no such file or folder")
    files, kind = _files(path)
    if kind == "images":
        return load_images(path, files, graph, images, batch_size, samples)
    if path.is_dir():
        return load_array_folder(path, files, graph, batch_size, samples)
    return load_array_file(path, graph, samples)


def holds_images(path: Path) -> bool:
    """Whether the data at `path` is images, by the names of its files."""
    return is_there(path) and _files(path)[1] == "images"


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
    files = [item for item in inside if item.is_file() and _kind(item) is not None]
    if not files:
        folders = sum(item.is_dir() for item in inside)
        hint = f"; its {folders} folder(s) are not searched: name one of them" if folders else ""
        raise DataError(f"{path}: the folder holds no data: no file ends in {', '.join((*ARRAYS, *IMAGES))}{hint}")
    kind = _kind(files[0])
    mismatched = next((item for item in files if _kind(item) != kind), None)
    if mismatched is not None:
        raise DataError(
            f"{path}: the folder mixes arrays and images ({files[0].name}, {mismatched.name}): "
            "put them into two folders"
        )
    return files, str(kind)


def _kind(path: Path) -> str | None:
    ending = path.suffix.lower()
    return "arrays" if ending in ARRAYS else "images" if ending in IMAGES else None
