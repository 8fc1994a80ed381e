"""What is asked of paths and archives before the work."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from zipfile import ZipFile

from isobit.errors import OutputError

#: Bytes that an archive may unpack to, however small it is, and how many times its size it may unpack to beyond them.
_ALWAYS_UNPACKED, _LARGEST_RATIO = 128 << 20, 100


def is_there(path: str | os.PathLike[str]) -> bool:
    """Whether anything has that name; no for names that nothing can have, by their length or a null byte."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def make_folders(folder: Path) -> list[Path]:
    """Make a folder with those that it lies in, however deep; those that were made, the innermost first.

    Raises OSError and ValueError, and leaves none that it made.
    """
    missing: list[Path] = []
    while not folder.is_dir() and folder != folder.parent:
        missing.append(folder)
        folder = folder.parent
    made: list[Path] = []
    try:
        for path in reversed(missing):
            try:
                path.mkdir()
                made.insert(0, path)
            except FileExistsError:
                if not path.is_dir():  # else another program made it meanwhile
                    raise NotADirectoryError(errno.ENOTDIR, f"{path} is not a folder") from None
    except (OSError, ValueError):  # ValueError: a null byte
        remove_empty(made)
        raise
    return made


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove the folders in which nothing is, the innermost first."""
    for path in folders:
        with suppress(OSError):
            path.rmdir()


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
    _check_place(folder, "cannot write to folder", folder)
    for name in names:
        check_not_replaced(folder / name)


def check_file_writable(path: Path) -> None:
    """Raise OutputError now rather than after the work, when `path` cannot be written as a file."""
    _check_place(path.absolute().parent, "cannot write", path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:  # a name that is too long
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    except ValueError as error:  # a null byte
        raise OutputError(f"cannot write {str(path)!r}: {error}") from error
    if stat.S_ISDIR(mode):
        raise OutputError(f"cannot write {path}: it is a folder")
    if not stat.S_ISREG(mode):
        raise OutputError(f"cannot write {path}: it is a device or a pipe, which would be replaced by a file")


def check_not_replaced(path: Path) -> None:
    """Raise OutputError where a link, a device, a pipe or a socket has the name of what will be written."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:  # a name that is too long
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    except ValueError as error:  # a null byte
        raise OutputError(f"cannot write {str(path)!r}: {error}") from error
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return
    kind = f"a link to {os.readlink(path)}" if stat.S_ISLNK(mode) else "a device, a pipe or a socket"
    raise OutputError(
        f"cannot write {path}: it is {kind}, which would be replaced: remove it, or write to another folder"
    )


def _check_place(folder: Path, problem: str, path: Path) -> None:
    """Raise OutputError, which begins with `problem` and `path`, where `folder` cannot be made or written in."""
    existing = folder
    try:
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
    except OSError as error:  # a name that is too long
        raise OutputError(f"{problem} {path}: {error.strerror or error}") from error
    except ValueError as error:  # a null byte
        raise OutputError(f"{problem} {str(path)!r}: {error}") from error
    if not existing.is_dir():
        raise OutputError(f"{problem} {path}: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"{problem} {path}: no permission to write in {existing}")
