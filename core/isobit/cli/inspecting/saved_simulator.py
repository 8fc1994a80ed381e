"""A saved simulator: its settings, its encodings, and what else is in the file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobit.cli.inspecting.encodings_table import encoding_records, show_encodings
from isobit.cli.terminal import line, table

if TYPE_CHECKING:
    from isobit.encodings.encoding import Encodings
    from isobit.html_report import Section


@dataclass(frozen=True)
class FoundSimulator:
    """What `QuantSim.save` wrote; the model is not in it."""

    path: Path
    settings: dict[str, Any]
    encodings: Encodings

    @classmethod
    def read(cls, path: Path) -> FoundSimulator:
        """Read it. Raises ModelError."""
        from isobit.quantsim.save_file import read_saved

        saved = read_saved(str(path))
        manifest, statistics = saved["manifest"], saved["statistics"]
        settings = {
            "target": saved["target"].name,
            **{name: manifest[name] for name in ("weights", "activations", "overrides", "exclude", "calibration")},
            "edits": dict(Counter(type(edit).__name__ for edit in saved["edits"]).most_common()),
            "frozen": len(saved["frozen"]),
            "statistics": {"tensors": len(statistics), "batches": statistics.batches},
        }
        return cls(path, settings, saved["encodings"])

    def data(self) -> dict[str, Any]:
        """The settings, and a record for each encoding."""
        return {**self.settings, "encodings": encoding_records(self.encodings)}

    def sections(self) -> list[Section]:
        """The same tables."""
        from isobit.html_report import Column, encodings_table
        from isobit.html_report import table as html_table

        columns = [Column("setting"), Column("value", "words")]
        return [html_table("Settings", columns, self._settings()), encodings_table(self.encodings)]

    def show(self, cap: int) -> None:
        """The settings that say something, and a table of encodings."""
        line(f"{self.path}: a saved simulator of {len(self.encodings)} encodings, without its model", style="bold")
        table(("", ""), self._settings())
        show_encodings(self.encodings, cap)

    def _settings(self) -> list[tuple[str, str]]:
        settings, statistics = self.settings, self.settings["statistics"]
        overrides = ", ".join(f"{name}={form or 'float'}" for name, form in settings["overrides"].items())
        edits = ", ".join(f"{count} {kind}" for kind, count in settings["edits"].items())
        return [
            ("target", settings["target"]),
            ("weights", settings["weights"] or "the target's"),
            ("activations", settings["activations"] or "the target's"),
            ("overrides", overrides or "none"),
            ("left in float", ", ".join(settings["exclude"]) or "nothing"),
            ("calibration", settings["calibration"] or "none"),
            ("edits", edits or "none"),
            ("frozen", str(settings["frozen"])),
            ("statistics", f"{statistics['tensors']} tensors over {statistics['batches']} batches"),
        ]
