"""The errors a user can cause: one root, a few leaves.

Every message says what was wrong, where (tensor, layer, file, field) and what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class IsobitError(Exception):
    """Root of every error that isobit raises on purpose."""


class ModelError(IsobitError):
    """The model cannot be read, run or translated."""


class DataError(IsobitError):
    """The data does not fit the model, is empty, or holds NaN or infinity."""


class FormatError(IsobitError):
    """A numeric format is misspelt, or the target cannot run it."""


class TargetError(IsobitError):
    """A target file is not valid, or no target has that name."""


class RecipeError(IsobitError):
    """A recipe file is not valid, or no recipe has that name."""


class EncodingError(IsobitError):
    """An encoding, or a file of encodings, is not valid."""


class EditError(IsobitError):
    """An edit of the graph was refused; nothing was changed."""


class PluginError(IsobitError):
    """A plug-in, or the framework it needs, is missing or broken."""


class EvaluateError(IsobitError):
    """A user's `evaluate` does not say how good a model is: it fails, takes no model, or returns no number."""


class OutputError(IsobitError):
    """A file or folder cannot be written."""


class IsobitWarning(UserWarning):
    """Root of every warning of isobit: something was not done that a user may expect, and the work goes on."""


class CoverageWarning(IsobitWarning):
    """Nothing is quantized, or weights of layers stay in float without being told to."""


class RecipeWarning(IsobitWarning):
    """A step of a recipe failed on this network and was left out."""


class GridWarning(IsobitWarning):
    """The grids of a simulator do not fit the weights that were loaded into it."""


class FileWarning(IsobitWarning):
    """A written file does not run in one of the sessions that it is checked in."""


class TargetWarning(IsobitWarning):
    """A target file names an operation that does not exist."""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` for the nearest known name, or an empty string."""
    near = get_close_matches(name, list(choices), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
