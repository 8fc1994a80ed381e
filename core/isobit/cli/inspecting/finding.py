"""Finding: what `isobit inspect` found in a file, as data and as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from isobit.html_report import Section


class Finding(Protocol):
    """What a file holds."""

    def data(self) -> dict[str, Any]:
        """All of it, as what JSON can hold."""
        ...

    def sections(self) -> list[Section]:
        """All of it, as parts of a page."""
        ...

    def show(self, cap: int) -> None:
        """Print it, at most `cap` entries of each list."""
        ...
