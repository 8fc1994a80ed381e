"""Tables and lines at the widths of terminals: nothing is longer than the width, and no word is broken."""

from __future__ import annotations

import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isobit.cli import terminal

WORDS = st.text("abcdefghij./_", min_size=1, max_size=24)
CELLS = st.lists(WORDS, max_size=4).map(" ".join)


@given(st.lists(st.tuples(WORDS, CELLS, CELLS), min_size=1, max_size=4), st.integers(60, 100))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_word_of_a_table_is_broken(monkeypatch, rows, width):
    monkeypatch.setenv("COLUMNS", str(width))
    shown = printed(monkeypatch, lambda: terminal.table(("name", "what", "why"), rows, right=("why",)))
    for row in rows:
        for cell in row:
            assert set(cell.split()) <= set(shown.split())
    assert max(map(len, shown.splitlines())) <= width + 5 * 24  # a block may hold a cell that is wider


@pytest.mark.parametrize("width", [80, 120])
def test_names_that_leave_no_room_get_lines_of_their_own(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    name = "model.encoder.layers.11." * 4 + "weight"
    rows = [(name, "int8", "a reason of some words that goes on for quite a while " * 2)]
    shown = printed(monkeypatch, lambda: terminal.table(("name", "format", "why"), rows)).splitlines()
    assert name in shown
    assert all(len(text) <= width for text in shown if text != name)
    assert any(text.startswith("  int8    a reason") for text in shown)


def test_cells_of_several_lines_stay_so(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = printed(monkeypatch, lambda: terminal.table(("", ""), [("run as one", "Conv -> Relu\nAdd -> Relu")]))
    assert shown.splitlines() == ["", "run as one  Conv -> Relu", "            Add -> Relu", ""]


class Window(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self):
        return True


def test_sentences_are_broken_between_words_in_a_terminal_and_commands_are_not(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("sys.stdout", Window())
    terminal.line("note: the output has a long sentence behind it, classifier.weight[0] too")
    terminal.line("isobit quantize model.onnx --data calibration.npz -o out/", is_command=True)
    import sys

    assert sys.stdout.getvalue().splitlines() == [
        "note: the output has a long sentence",
        "  behind it, classifier.weight[0] too",
        "isobit quantize model.onnx --data calibration.npz -o out/",
    ]


def test_a_pipe_gets_whole_lines(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert printed(monkeypatch, lambda: terminal.line("word " * 30)).count("\n") == 1


def printed(monkeypatch, show):
    stream = io.StringIO()
    with monkeypatch.context() as patched:
        patched.setattr("sys.stdout", stream)
        show()
    return stream.getvalue()
