"""Two folders change places in one step, where the system has one."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

#: ``AT_FDCWD`` and ``RENAME_EXCHANGE`` of Linux (renameat2(2)); ``RENAME_SWAP`` of macOS (renamex_np(2)).
_AT_FDCWD, _RENAME_EXCHANGE, _RENAME_SWAP = -100, 2, 2


def exchange(first: Path, second: Path) -> None:
    """Let two folders of one file system have each other's name.

    Raises OSError where the system or the file system cannot do so in one step.
    """
    a, b = os.fsencode(first), os.fsencode(second)
    library = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        status = library.renameat2(_AT_FDCWD, a, _AT_FDCWD, b, ctypes.c_uint(_RENAME_EXCHANGE))
    elif sys.platform == "darwin" and hasattr(library, "renamex_np"):
        status = library.renamex_np(a, b, ctypes.c_uint(_RENAME_SWAP))
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if status:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(first), None, str(second))
