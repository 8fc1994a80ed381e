"""One file, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from isobit.errors import OutputError
from isobit.files.path_checks import check_file_writable, make_folders, remove_empty
from isobit.files.scratch import scratch_in


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """A temporary path of the same name that replaces `path` when the block ends without an error, and is removed else.

    Where `path` is a link, the link stays and the file that it leads to is replaced. Raises OutputError, also for a
    device or a pipe, which is never replaced.
    """
    made: list[Path] = []
    try:
        path = Path(os.path.realpath(path))
        check_file_writable(path)
        made = make_folders(path.parent)
        with scratch_in(path.parent) as scratch:
            temporary = scratch / path.name
            temporary.touch()
            yield temporary
            temporary.replace(path)
            made.clear()
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    except ValueError as error:  # a null byte
        if "\0" not in str(path):
            raise
        raise OutputError(f"cannot write {str(path)!r}: {error}") from error
    finally:
        remove_empty(made)  # if nothing else came into them
