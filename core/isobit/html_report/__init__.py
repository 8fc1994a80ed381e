"""Results as one HTML file that needs no network: a page of sections, each a kind of drawing or of table."""

from __future__ import annotations

from isobit.html_report.drawn_values import Counted, DrawnValues
from isobit.html_report.encoding_rows import ENCODING_TITLES, encoding_cells, encodings_table, short_format
from isobit.html_report.page import Cell, Column, Curve, Section, cards, curve, notes, page_text, table, write_page
from isobit.html_report.tensor_plot import TensorPlot

__all__ = [
    "ENCODING_TITLES",
    "Cell",
    "Column",
    "Counted",
    "Curve",
    "DrawnValues",
    "Section",
    "TensorPlot",
    "cards",
    "curve",
    "encoding_cells",
    "encodings_table",
    "notes",
    "page_text",
    "short_format",
    "table",
    "write_page",
]
