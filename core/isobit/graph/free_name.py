"""Names that nothing has yet."""

from __future__ import annotations

from collections.abc import Container
from itertools import count


def free_name(stem: str, *taken: Container[str | None], separator: str = "_") -> str:
    """`stem`, or the first of it with a number behind a separator that is in none of `taken`."""
    numbered = (f"{stem}{separator}{number}" if number else stem for number in count())
    return next(name for name in numbered if not any(name in names for names in taken))


def take_name(stem: str, taken: set[str] | set[str | None], separator: str = "_") -> str:
    """A free name, which is taken from then on."""
    name = free_name(stem, taken, separator=separator)
    taken.add(name)
    return name
