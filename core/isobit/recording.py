"""Edits are written down while they are made, for saving and replaying."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from isobit.backend import BackendModel
from isobit.edit import Edit


class Recorded:
    """A BackendModel that writes down the edits made through it."""

    def __init__(self, model: BackendModel, log: list[Edit]) -> None:
        self._model = model
        self._log = log

    def edit(self, edits: Sequence[Edit]) -> None:
        """Apply edits, and write them down once they are made."""
        self._model.edit(edits)
        self._log += edits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
