"""Writing files so that nothing half-written is ever left behind."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZipFile

from isobit.errors import OutputError

#: Bytes that an archive may unpack to, however small it is, and how many times its size it may unpack to beyond them.
_ALWAYS_UNPACKED, _LARGEST_RATIO = 128 << 20, 100


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends without an error, and is removed else.

    Where `path` is a link, the link stays and the file that it leads to is replaced. Raises OutputError, also for a
    device or a pipe, which is never replaced.
    """
    try:
        path = Path(os.path.realpath(path))
        if path.exists() and not path.is_file() and not path.is_dir():
            raise OutputError(f"cannot write {path}: it is a device or a pipe, which would be replaced by a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    except ValueError as error:  # a null byte
        raise OutputError(f"cannot write {str(path)!r}: {error}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def write_folder(folder: Path) -> Iterator[Path]:
    """A staging folder whose files and folders move into `folder` together when the block ends well.

    What is in `folder` under other names is left alone; a folder takes the place of a folder of its name as a whole.
    """
    try:
        created = next((path for path in (*reversed(folder.parents), folder) if not path.exists()), None)
        folder.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".isobit-", dir=folder))
    except OSError as error:
        raise OutputError(f"cannot write to folder {folder}: {error.strerror}") from error
    except ValueError as error:  # a null byte
        raise OutputError(f"cannot write to folder {str(folder)!r}: {error}") from error
    is_complete = False
    try:
        yield staging
        items = sorted(staging.iterdir())
        for item in items:  # all are checked before the first one moves
            existing = folder / item.name
            if existing.exists() and existing.is_dir() != item.is_dir():
                kind = "folder" if existing.is_dir() else "file"
                raise OutputError(f"cannot write {existing}: a {kind} of that name is there")
        for item in items:
            if item.is_dir() and (folder / item.name).exists():
                (folder / item.name).replace(Path(tempfile.mkdtemp(dir=staging)) / "replaced")
            item.replace(folder / item.name)
        is_complete = True
    except OSError as error:
        raise OutputError(f"cannot write to folder {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if created is not None and not is_complete:  # the outermost folder that was made here
            shutil.rmtree(created, ignore_errors=True)


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


def check_writable(folder: Path) -> None:
    """Raise OutputError now rather than after the work, when `folder` cannot be written."""
    existing = folder
    try:
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
    except OSError as error:  # a name that is too long
        raise OutputError(f"cannot write to folder {folder}: {error.strerror}") from error
    if not existing.is_dir():
        raise OutputError(f"cannot write to folder {folder}: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write to folder {folder}: no permission to write in {existing}")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
