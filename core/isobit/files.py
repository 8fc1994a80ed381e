"""Writing files so that nothing half-written is ever left behind."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from isobit.errors import OutputError


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends without an error, and is removed else."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
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
    created = next((path for path in (*reversed(folder.parents), folder) if not path.exists()), None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".isobit-", dir=folder))
    except OSError as error:
        raise OutputError(f"cannot write to folder {folder}: {error.strerror}") from error
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


def check_writable(folder: Path) -> None:
    """Raise OutputError now rather than after the work, when `folder` cannot be written."""
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise OutputError(f"cannot write to folder {folder}: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write to folder {folder}: no permission to write in {existing}")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
