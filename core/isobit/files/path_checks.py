"""What is asked of paths and archives before the work."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from zipfile import ZipFile

from isobit.errors import OutputError

#: Bytes that an archive may unpack to, however small it is, and how many times its size it may unpack to beyond them.
_ALWAYS_UNPACKED, _LARGEST_RATIO = 128 << 20, 100


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file of that name; no for names that no file can have, by their length or a null byte."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def check_unpacked_size(archive: ZipFile) -> None:
    """Raise ValueError for a zip that says it unpacks to far more than it is, before any of it is read.

    A member is never read beyond the size that the archive says.
    """
    members = archive.infolist()
    packed, unpacked = sum(m.compress_size for m in members), sum(m.file_size for m in members)
    if unpacked > max(_ALWAYS_UNPACKED, _LARGEST_RATIO * packed):
        raise ValueError(f"it would unpack to {unpacked} bytes from {packed}, more than {_LARGEST_RATIO} times as many")


def check_writable(folder: Path, names: Iterable[str] = ()) -> None:
    """Raise OutputError now rather than after the work, when `folder` cannot be written.

    `names` are those that will be written in it: what must not be replaced is found now.
    """
    existing = folder
    try:
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
    except OSError as error:  # a name that is too long
        raise OutputError(f"cannot write to folder {folder}: {error.strerror}") from error
    except ValueError as error:  # a null byte
        raise OutputError(f"cannot write to folder {str(folder)!r}: {error}") from error
    if not existing.is_dir():
        raise OutputError(f"cannot write to folder {folder}: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write to folder {folder}: no permission to write in {existing}")
    for name in names:
        check_not_replaced(folder / name)


def check_not_replaced(path: Path) -> None:
    """Raise OutputError where a link, a device, a pipe or a socket has the name of what will be written."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:  # a name that is too long, a null byte
        raise OutputError(f"cannot write {str(path)!r}: {error}") from error
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return
    kind = f"a link to {os.readlink(path)}" if stat.S_ISLNK(mode) else "a device, a pipe or a socket"
    raise OutputError(
        f"cannot write {path}: it is {kind}, which would be replaced: remove it, or write to another folder"
    )
