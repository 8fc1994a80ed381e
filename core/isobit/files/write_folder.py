"""Files that appear in a folder together: at any moment all are there, or none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from isobit.errors import OutputError
from isobit.files.exchange import exchange
from isobit.files.path_checks import check_not_replaced, make_folders, remove_empty
from isobit.files.scratch import move_out, scratch_in, sweep


@contextmanager
def write_folder(folder: Path) -> Iterator[Path]:
    """A staging folder whose files and folders appear in `folder` in one step when the block ends well.

    What is in `folder` under other names stays; a folder takes the place of a folder of its name as a whole. Links,
    devices and pipes are not replaced. Where the step is not one (decision 0069), the next run ends what a killed one
    began. Raises OutputError, and leaves what was there.
    """
    made: list[Path] = []
    try:
        folder = Path(os.path.realpath(folder))
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"cannot write to folder {folder}: it is not a folder")
        place = folder if _stays_in_place(folder) else folder.parent
        made = make_folders(place)
        sweep(folder)
        with scratch_in(place) as scratch:
            staging = scratch / "new"
            staging.mkdir()
            yield staging
            _check_kinds(staging, folder)
            _publish(staging, scratch, folder)
            made.clear()
    except OSError as error:
        raise OutputError(f"cannot write to folder {folder}: {error.strerror or error}") from error
    except ValueError as error:  # a null byte
        if "\0" not in str(folder):
            raise
        raise OutputError(f"cannot write to folder {str(folder)!r}: {error}") from error
    finally:
        remove_empty(made)  # if nothing else came into them


def _stays_in_place(folder: Path) -> bool:
    """Whether a folder cannot give way to another one: it is where this process stands, or its parent is not ours."""
    if not folder.exists():
        return False
    here = [Path(os.path.realpath(os.curdir))] if os.path.exists(os.curdir) else []
    return (
        any(folder in (path, *path.parents) for path in here)
        or folder.stat().st_dev != folder.parent.stat().st_dev
        or os.path.ismount(folder)
        or not os.access(folder.parent, os.W_OK | os.X_OK)
    )


def _check_kinds(staging: Path, folder: Path) -> None:
    """Raise OutputError, before anything moves, where something of another kind has a name that was written."""
    for item in staging.iterdir():
        existing = folder / item.name
        check_not_replaced(existing)
        if existing.exists() and existing.is_dir() != item.is_dir():
            kind = "folder" if existing.is_dir() else "file"
            raise OutputError(f"cannot write {existing}: a {kind} of that name is there")


def _publish(staging: Path, scratch: Path, folder: Path) -> None:
    """Let the content of `staging` be in `folder`. Raises OSError."""
    if not folder.exists():
        with suppress(FileExistsError):
            staging.rename(folder)
            return
    sweep(folder)  # what a run that was killed meanwhile was moving is older than this
    items = list(staging.iterdir())
    if len(items) == 1 and not items[0].is_dir():
        items[0].replace(folder / items[0].name)
    elif scratch.parent == folder:
        move_out(staging, scratch)
    elif not _change_places(staging, folder):
        with scratch_in(folder) as inner:
            moved = inner / "new"
            try:
                staging.rename(moved)
            except OSError:  # another mount of the same file system
                shutil.copytree(staging, moved)
            move_out(moved, inner)


def _change_places(staging: Path, folder: Path) -> bool:
    """Let `staging`, with further names for all other files of `folder`, have its place; False where it cannot.

    A folder with folders of the user is not one of exports alone: other programs may stand in it, so it stays.
    """
    written = set(os.listdir(staging))
    linked: list[Path] = []
    try:
        with os.scandir(folder) as entries:
            others = [entry for entry in entries if entry.name not in written]
        if any(entry.is_dir(follow_symlinks=False) for entry in others):
            return False
        for entry in others:
            os.link(entry.path, staging / entry.name, follow_symlinks=False)
            linked.append(staging / entry.name)
        status = folder.stat()
        if hasattr(os, "chown"):
            os.chown(staging, status.st_uid, status.st_gid)
        shutil.copystat(folder, staging)
        exchange(staging, folder)
    except (OSError, NotImplementedError):
        for path in linked:
            path.unlink(missing_ok=True)
        return False
    with os.scandir(staging) as entries:  # the old folder now
        for entry in entries:
            new = folder / entry.name
            if entry.name not in written and not (os.path.lexists(new) and _is_same(Path(entry), new)):
                os.replace(entry.path, new)  # another program wrote it while the places were changed
    return True


def _is_same(first: Path, second: Path) -> bool:
    return os.path.samestat(first.lstat(), second.lstat())
