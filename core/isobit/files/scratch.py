"""Scratch folders of writers: each is locked while its writer lives, so that those of killed runs can be told.

A lock of the system goes with the process that holds it, whatever ends it, and is seen by other machines and containers
that share the folder; the number of a process is neither.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_PREFIX = ".isobit-tmp-"
_NAME = re.compile(re.escape(_PREFIX) + "[a-z0-9_]{8}")

#: In a scratch folder: the file that is locked, and the folder whose content is on its way to where the scratch lies.
_LOCK, _MOVING = "lock", "moving"

#: What file systems answer that have no locks: there nothing is swept.
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP})


class _TakenError(Exception):
    """A living process has the lock, or the folder is gone."""


@contextmanager
def scratch_in(folder: Path) -> Iterator[Path]:
    """An empty folder in `folder` for what is being written; it goes at the end, with all that is left in it.

    What killed runs left in `folder` goes first. Raises OSError.
    """
    sweep(folder)
    while True:
        scratch = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder))
        try:
            lock = _lock(scratch)
        except _TakenError:  # another process took it for one that was left
            continue
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                _remove(scratch)
                raise
            lock = None
        break
    try:
        yield scratch
    finally:
        _remove(scratch)
        if lock is not None:
            os.close(lock)


def sweep(folder: Path) -> None:
    """Remove the scratch folders of killed runs in `folder`; what one of them was moving out of its own, is moved."""
    left = []
    with suppress(OSError), os.scandir(folder) as entries:
        left = [Path(entry) for entry in entries if _NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)]
    for scratch in left:
        with suppress(OSError, _TakenError):  # of another user, or of a run that lives
            lock = _lock(scratch)
            try:
                if (scratch / _MOVING).is_dir():
                    _move_content(scratch, folder)
                _remove(scratch)
            finally:
                os.close(lock)


def move_out(source: Path, scratch: Path) -> None:
    """Move all that is in `source`, which lies in `scratch`, beside `scratch`; the next run ends it if this one cannot.

    Folders of the same names are replaced as a whole. Raises OSError.
    """
    with _locked_folder(scratch.parent):
        source.rename(scratch / _MOVING)
        _move_content(scratch, scratch.parent)


def _move_content(scratch: Path, folder: Path) -> None:
    for item in sorted((scratch / _MOVING).iterdir()):
        existing = folder / item.name
        if item.is_dir() and existing.is_dir():
            existing.replace(Path(tempfile.mkdtemp(dir=scratch)) / "replaced")
        item.replace(existing)


@contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    """One writer after the other, where folders can be locked."""
    if sys.platform == "win32":
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _lock(scratch: Path) -> int:
    """The open lock of a scratch folder. Raises _TakenError, or OSError where files cannot be locked."""
    if sys.platform == "win32":
        raise OSError(errno.ENOSYS, "no locks that go with their process")
    path = scratch / _LOCK
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError as error:
        raise _TakenError from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(handle), path.stat()):
            raise _TakenError
    except (BlockingIOError, FileNotFoundError) as error:
        os.close(handle)
        raise _TakenError from error
    except BaseException:
        os.close(handle)
        raise
    return handle


def _remove(scratch: Path) -> None:
    """Remove a scratch folder, its lock last: until then no other process takes it for one that was left."""
    with suppress(OSError):
        for item in scratch.iterdir():
            if item.is_dir() and not item.is_symlink():
                shutil.rmtree(item, ignore_errors=True)
            elif item.name != _LOCK:
                item.unlink()
        (scratch / _LOCK).unlink(missing_ok=True)
        scratch.rmdir()
