"""An analysis as one HTML file that needs no network: the data, and a page that draws them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any


def html_report(data: Mapping[str, Any]) -> str:
    """The page; `data` is what `Analysis.to_dict` gives.

    Names come from the user's model: the page shows them as text, and nothing in them can end the element of the data.
    """
    page = files("isobit.analysis").joinpath("report_template.html").read_text("utf-8")
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return page.replace("__DATA__", text)
