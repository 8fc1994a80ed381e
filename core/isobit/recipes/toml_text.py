"""Values as TOML writes them, which Python only reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def key_text(name: str) -> str:
    """A key, in quotes where it needs them."""
    return name if name.replace("_", "a").isalnum() and name.isascii() else value_text(name)


def value_text(value: Any) -> str:
    """A text, number, truth value, list or table of these."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key_text(str(key))} = {value_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(value_text, value)) + "]"
    if isinstance(value, str):
        # a basic string of TOML is one of JSON, but for this character
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
