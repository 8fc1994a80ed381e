"""One file, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from isobit.errors import OutputError
from isobit.files.scratch import scratch_in


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """A temporary path of the same name that replaces `path` when the block ends without an error, and is removed else.

    Where `path` is a link, the link stays and the file that it leads to is replaced. Raises OutputError, also for a
    device or a pipe, which is never replaced.
    """
    try:
        path = Path(os.path.realpath(path))
        if path.exists() and not path.is_file() and not path.is_dir():
            raise OutputError(f"cannot write {path}: it is a device or a pipe, which would be replaced by a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch_in(path.parent) as scratch:
            temporary = scratch / path.name
            temporary.touch()
            yield temporary
            temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    except ValueError as error:  # a null byte
        if "\0" not in str(path):
            raise
        raise OutputError(f"cannot write {str(path)!r}: {error}") from error
