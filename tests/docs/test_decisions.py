"""Each decision says its status and date, and the index says the same of each."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "decisions"
PAGES = sorted(FOLDER.glob("[0-9]*.md"))

_HEAD = re.compile(
    r"# (?P<title>.+)\n\n\*(?P<status>Accepted|Replaced by (?P<by>\d{4})), (?P<date>\d{4}-\d\d-\d\d)\*\n\n"
)
_ROW = re.compile(r"\| \[(\d{4})\]\(([^)]+)\) \| .+ \| (.+) \| (.+) \|")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_decision_says_its_status_and_date(page: Path) -> None:
    head = _HEAD.match(page.read_text("utf-8"))
    assert head is not None, "under the title stands *Accepted, YEAR-MONTH-DAY* or *Replaced by NUMBER, ...*"
    date.fromisoformat(head["date"])
    if head["by"]:
        assert list(FOLDER.glob(f"{head['by']}-*.md")), "it is replaced by a page that is there"


def test_the_index_says_the_same_of_every_decision() -> None:
    rows = _ROW.findall((FOLDER / "index.md").read_text("utf-8"))
    expected = []
    for page in PAGES:
        head = _HEAD.match(page.read_text("utf-8"))
        assert head is not None, page
        expected.append((page.name[:4], page.name, head["status"], head["date"]))
    assert rows == expected
