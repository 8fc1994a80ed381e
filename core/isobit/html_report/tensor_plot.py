"""The values of one quantized tensor with its grid, for notebooks and files."""

from __future__ import annotations

import html
from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

from isobit.html_report.drawn_values import DrawnValues
from isobit.html_report.page import Section, page_text, write_page

#: Pixels in a notebook.
_HEIGHT = 470


@dataclass(frozen=True)
class TensorPlot:
    """The histogram of a tensor with its grid drawn on it, and the ranges of its channels before and on the grid.

    A notebook shows it where it is the last value of a cell. `grid` are the ends of the grid, `seen` those of the
    values, `step` the distance of two levels, the largest of all channels.
    """

    name: str
    format: str
    grid: tuple[float, float]
    seen: tuple[float, float]
    step: float
    channels: int
    drawn: DrawnValues

    def to_dict(self) -> dict[str, Any]:
        """All of it, as a page draws it."""
        found = asdict(self)
        return {**found, **found.pop("drawn")}

    def to_html(self, path: str | PathLike[str]) -> None:
        """Write it as one HTML file that needs no network."""
        write_page(path, self.name, self.format, self._sections())

    def _repr_html_(self) -> str:
        # In a frame of its own: the page's style and script know nothing of the notebook's, nor it of theirs.
        page = html.escape(page_text(self.name, self.format, self._sections()))
        return f'<iframe srcdoc="{page}" style="width:100%;height:{_HEIGHT}px;border:0" title="isobit"></iframe>'

    def _sections(self) -> list[Section]:
        return [Section("plot", "", self.to_dict())]
