"""Results as JSON: what no number of it can hold becomes null, and files are whole or not there."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path, PurePath
from typing import Any

from isobit.files.write_file import write_atomically


def plain(value: Any) -> Any:
    """A value as JSON can hold it: keys and paths are texts, sequences lists, and NaN and infinity None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, PurePath) else value


def json_text(data: Mapping[str, Any], path: str | PathLike[str] | None = None) -> str:
    """Plain data as text; written to `path` too where one is given. Raises OutputError."""
    text = json.dumps(data, indent=2, allow_nan=False)
    if path is not None:
        with write_atomically(Path(fspath(path))) as temporary:
            temporary.write_text(text + "\n", "utf-8")
    return text
