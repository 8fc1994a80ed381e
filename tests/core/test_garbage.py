"""While a model is quantized, collections of garbage look at what is made meanwhile, and at nothing else."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from isobit.garbage import young_garbage


@pytest.fixture(autouse=True)
def nothing_frozen() -> Iterator[None]:
    """The tests freeze what they begin with (`tests/conftest.py`)."""
    was_frozen = gc.get_freeze_count() > 0
    gc.unfreeze()
    yield
    if was_frozen:
        gc.freeze()


class Node:
    """A part of a cycle."""

    def __init__(self) -> None:
        self.itself = self


def test_old_objects_are_left_alone_and_new_cycles_go() -> None:
    old = [Node() for _ in range(1000)]
    with young_garbage():
        tracked = gc.get_objects()
        assert not any(item is old[0] for item in tracked)
        new = Node()
        gone = weakref.ref(new)
        del new
        gc.collect()
        assert gone() is None
    assert gc.get_freeze_count() == 0
    assert any(item is old[0] for item in gc.get_objects())


def test_an_error_leaves_nothing_frozen() -> None:
    with pytest.raises(ValueError, match="of the user"), young_garbage(), young_garbage():
        raise ValueError("of the user")
    assert gc.get_freeze_count() == 0


def test_what_others_froze_stays_frozen() -> None:
    gc.freeze()
    frozen = gc.get_freeze_count()
    with young_garbage():
        assert gc.get_freeze_count() == frozen
    assert gc.get_freeze_count() == frozen
