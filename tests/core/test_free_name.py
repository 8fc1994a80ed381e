"""Names that nothing has yet."""

from __future__ import annotations

from isobit.graph.free_name import free_name, take_name


def test_numbers_follow_what_is_taken() -> None:
    assert free_name("w", {"v"}) == "w"
    assert free_name("w", {"w"}, {"w.1": 0}, separator=".") == "w.2"
    taken = {"w"}
    assert [take_name("w", taken, "#") for _ in range(3)] == ["w#1", "w#2", "w#3"]
    assert taken == {"w", "w#1", "w#2", "w#3"}
