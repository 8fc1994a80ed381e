"""Where numba keeps compiled kernels in tests: by what a file says, so that all environments compile it once together.

By itself numba goes by the path of the file, and each environment of tox would spend the same 13 s in it. Named by
``NUMBA_CACHE_LOCATOR_CLASSES`` in ``tox.ini``.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from numba.core.caching import UserProvidedCacheLocator


class ByContent(UserProvidedCacheLocator):
    """A folder of ``NUMBA_CACHE_DIR`` for each content of a source file."""

    @classmethod
    def get_suitable_cache_subpath(cls, py_file: str) -> str:
        """The name of the folder."""
        path = Path(py_file)
        return f"{path.stem}_{sha256(path.read_bytes()).hexdigest()}"
