"""Progress is for a terminal, and passes the items through."""

from __future__ import annotations

import pytest

from isobit.quantsim.progress import track


@pytest.mark.parametrize("show", [None, False, True])
def test_items_pass_through(show: bool | None, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(iter("abc"), "reading", 3, show=show)) == ["a", "b", "c"]
    printed = capsys.readouterr()
    assert printed.out == ""
    assert bool(printed.err) == bool(show)


def test_items_are_taken_one_by_one() -> None:
    taken = []

    def items() -> object:
        for index in range(3):
            taken.append(index)
            yield index

    stream = track(items(), "reading", show=False)  # type: ignore[arg-type]
    next(stream)
    assert taken == [0]
