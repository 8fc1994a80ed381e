"""Collections of garbage that do not look through what was there before."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def young_garbage() -> Iterator[None]:
    """Inside, Python's collector looks at what is made inside alone; outside everything is as before.

    Graphs are many small objects in cycles, so that the collector runs often, and each full run goes through all
    objects of all modules that are loaded. What was garbage before is collected afterwards. Who has frozen objects
    keeps them frozen: then nothing is done.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
