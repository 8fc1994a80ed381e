"""Folders for files that another library wants to find on disk for a moment."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from isobit.errors import OutputError
from isobit.files.scratch import scratch_in

#: What a full disk or quota answers, or one that became read-only: errors of the place, not of what is done in it.
_OF_THE_PLACE = frozenset(
    getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EROFS", "EFBIG", "EIO") if hasattr(errno, name)
)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder where the system keeps temporary files; those that killed runs left there go first.

    Raises OutputError where nothing can be written there, also while the folder is in use.
    """
    place, is_in_use = "", False
    try:
        place = tempfile.gettempdir()
        with scratch_in(Path(place)) as folder:
            is_in_use = True
            yield folder
    except OSError as error:
        if is_in_use and error.errno not in _OF_THE_PLACE:
            raise
        where = f" in {place}" if place else ""
        raise OutputError(
            f"cannot write temporary files{where}: {error.strerror or error}: "
            "set TMPDIR to a folder that can be written and has space"
        ) from error
