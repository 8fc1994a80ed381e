"""The version of isobit: pyproject.toml, reports, files and plug-in records read it here."""

from __future__ import annotations

__version__ = "0.1.0"
