"""What an `evaluate` says of a model: one figure, or several by name, as one for each output or part of one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isobit.errors import EvaluateError

#: A number, or numbers by name; the higher the better.
Figures = float | Mapping[str, float]


def checked_figures(value: Any) -> Figures:
    """What `evaluate` returned, in Python's own numbers. Raises EvaluateError for what is none."""
    if not isinstance(value, Mapping):
        return _number(value, "evaluate returned")
    if not value or not all(isinstance(name, str) and name for name in value):
        raise EvaluateError(
            f"evaluate returned {value!r}: figures by name are a dict such as {{'boxes': 0.41, 'classes': 0.93}}"
        )
    return {name: _number(figure, f"evaluate returned for {name!r}") for name, figure in value.items()}


def by_name(figures: Figures) -> Mapping[str, float]:
    """The figures by name, that of a number being empty."""
    return figures if isinstance(figures, Mapping) else {"": figures}


def mean_figures(runs: Sequence[Figures]) -> Figures:
    """The mean of several runs of one model. Raises EvaluateError where they have not the same names."""
    if not isinstance(runs[0], Mapping):
        return float(np.mean([_same_names(run, runs[0])[""] for run in runs]))
    return {name: float(np.mean([_same_names(run, runs[0])[name] for run in runs])) for name in runs[0]}


def score_of(figures: Figures, exact: Figures) -> float:
    """One figure of several: the mean of the float model's, less what the one falls that falls most.

    So what it is lower than the float model's is the largest fall, and a bound on it holds for each figure. A number is
    its own score; no number among several makes the score none.
    """
    if not isinstance(figures, Mapping) and not isinstance(exact, Mapping):
        return figures
    base, now = by_name(exact), _same_names(figures, exact)
    falls = [base[name] - now[name] for name in base]
    return math.nan if any(map(math.isnan, falls)) else float(np.mean(list(base.values()))) - max(falls)


def require_numbers(figures: Figures) -> None:
    """Raise EvaluateError for what `evaluate` says of the float model where that is no number."""
    if bad := without_number(figures):
        raise EvaluateError(
            f"evaluate returned {bad} for the float model: it must return a finite number, the higher the better"
        )


def without_number(figures: Figures) -> str:
    """``nan``, or ``nan for 'boxes'``: the first figure that is not finite; empty where all are."""
    for name, figure in by_name(figures).items():
        if not math.isfinite(figure):
            return f"{figure}{f' for {name!r}' if name else ''}"
    return ""


def figures_text(figures: Figures) -> str:
    """``boxes 0.41, classes 0.93``; empty for a single number, which is its own score."""
    return ", ".join(f"{name} {figure:.6g}" for name, figure in by_name(figures).items() if name)


def _number(value: Any, what: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise EvaluateError(
            f"{what} {value!r}: it must return a number, the higher the better, or a dict of such numbers by name"
        ) from error


def _same_names(figures: Figures, first: Figures) -> Mapping[str, float]:
    found, names = by_name(figures), by_name(first)
    if found.keys() != names.keys():
        raise EvaluateError(
            f"evaluate returned {_listed(names)} for one model and {_listed(found)} for another: it must return the "
            "same figures for all of them"
        )
    return found


def _listed(names: Mapping[str, float]) -> str:
    return ", ".join(name or "a number" for name in names)
