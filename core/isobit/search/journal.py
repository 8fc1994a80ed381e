"""The journal of a search: JSON lines that are on the disk before the next step, so that a killed run goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isobit.errors import DataError, OutputError
from isobit.files import is_there
from isobit.quantsim.judging.figures import Figures
from isobit.search.scoring import Score

_FORMAT, _VERSION = "isobit auto journal", 1

#: What the journal must agree with, and how it is said.
_WORDS = {
    "isobit": "made by another version of isobit",
    "model": "of another model",
    "data": "of other data",
    "target": "of another target",
    "settings": "of other settings",
    "evaluate": "of another evaluate",
}


class Journal:
    """A file with a line that says what it is of, and one for each score and attempt; without a path it is none."""

    def __init__(self, path: Path | None, header: Mapping[str, str]) -> None:
        self._path = path
        self._scores: dict[str, Score] = {}
        self._seconds: dict[str, float] = {}
        self._digest = hashlib.blake2b(json.dumps(dict(header), sort_keys=True).encode(), digest_size=4).hexdigest()
        if path is None:
            return
        if is_there(path) and path.stat().st_size:
            self._read(path, header)
        if not is_there(path) or not path.stat().st_size:
            self._write({"format": _FORMAT, "version": _VERSION, **header})

    def score(self, key: str) -> Score | None:
        """The score of an earlier run."""
        return self._scores.get(key)

    def keep_score(self, key: str, score: Score) -> None:
        """Write a score."""
        self._scores[key] = score
        figures = [_text(score.value), _text(score.sqnr), score.runs, score.spread]
        said = {} if score.figures is None else {"evaluate": _texts(score.figures)}
        self._write({"scored": key, "figures": figures, **said})

    def file_beside(self, attempt: str, ending: str) -> Path | None:
        """Where more of an attempt is kept; its name is of this model, data and settings alone. None without a path."""
        return (
            None if self._path is None else self._path.with_name(f"{self._path.name}.{self._digest}.{attempt}.{ending}")
        )

    def seconds(self, attempt: str) -> float | None:
        """How long an attempt took in the run that made it."""
        return self._seconds.get(attempt)

    def keep_attempt(self, attempt: str, record: Mapping[str, Any]) -> None:
        """Write what came of an attempt, once."""
        if attempt not in self._seconds:
            self._seconds[attempt] = float(record["seconds"])
            self._write({"attempt": attempt, **record})

    # --- inside ----------------------------------------------------------------------------------------------------

    def _read(self, path: Path, header: Mapping[str, str]) -> None:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read the journal {path}: {error.strerror}") from error
        whole, newline, _ = content.rpartition(b"\n")
        lines = whole.split(b"\n") if newline else []
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                if number == 1:
                    self._check(path, record, header)
                else:
                    self._take(record)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{path}: line {number} is damaged ({error}): remove the file to begin anew") from error
        if len(content) > len(whole) + len(newline):  # a run that was killed wrote half a line
            with path.open("r+b") as file:
                file.truncate(len(whole) + len(newline))

    @staticmethod
    def _check(path: Path, record: Mapping[str, Any], header: Mapping[str, str]) -> None:
        if record.get("format") != _FORMAT or record.get("version") != _VERSION:
            raise DataError(f"{path} is no journal of isobit auto: name another file")
        odd = [words for key, words in _WORDS.items() if record.get(key) != header[key]]
        if odd:
            raise DataError(
                f"the journal {path} is {', and '.join(odd)}: name another file, or remove it to begin anew"
            )

    def _take(self, record: Mapping[str, Any]) -> None:
        if "scored" in record:
            value, sqnr, runs, spread = record["figures"]
            said = _figures(record.get("evaluate"))  # journals from before several figures have one: the value
            self._scores[str(record["scored"])] = Score(float(value), float(sqnr), int(runs), float(spread), said)
        else:
            self._seconds[str(record["attempt"])] = float(record["seconds"])

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._path is None:
            return
        try:
            with self._path.open("ab") as file:
                file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"cannot write the journal {self._path}: {error.strerror}") from error


def _text(value: float) -> str:
    """As JSON has it: it knows no infinity."""
    return repr(float(value))


def _texts(figures: Figures) -> str | dict[str, str]:
    if isinstance(figures, Mapping):
        return {name: _text(figure) for name, figure in figures.items()}
    return _text(figures)


def _figures(texts: Any) -> Figures | None:
    if isinstance(texts, Mapping):
        return {str(name): float(text) for name, text in texts.items()}
    return None if texts is None else float(texts)
