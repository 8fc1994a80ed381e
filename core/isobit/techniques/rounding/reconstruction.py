"""A weight that makes up for the errors of earlier layers, as far as one half of the data says so of the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from isobit.statistics.layer_rows.gram import Gram
from isobit.statistics.layer_rows.rows import Rows
from isobit.techniques.rounding.curvature import Curvature
from isobit.techniques.rounding.objective import Objective

Matrix = NDArray[np.float64]

#: Ridges that are tried, in means of the diagonal of the second moments.
_RIDGES = (0.01, 0.1, 1.0)


def half_grams(rows: Rows, reference: Rows | None) -> list[Gram]:
    """The sums over the samples of even and of odd number; none where one of them is without rows."""
    odd = rows.stamps[:, 0] % 2 == 1
    parts = [(rows.part(chosen), None if reference is None else reference.part(chosen)) for chosen in (~odd, odd)]
    return [Gram.of(*pair) for pair in parts] if all(len(part) for part, _ in parts) else []


def reconstruction(
    weight: NDArray[np.float32], total: Gram, halves: Sequence[Gram], shape: Curvature, damping: float
) -> Objective:
    """The error of replacing `weight`, towards the float layer's output on the float model's inputs r.

    The weight that does so best, by least squares of w·r on the quantized model's inputs x, is fitted to few rows with
    many unknowns and takes chance for errors of earlier layers: in a transformer with little data that made the whole
    model worse. So it is fitted with a ridge and shrunk towards w, both chosen by what a fit to either half of the data
    does on the other; where it explains nothing there the target stays w. Source of the fit: Nagel et al. 2020, eq. 25.
    """
    w = weight.astype(np.float64)
    best = (0.0, 0.0, 0.0)
    for ridge in _RIDGES if len(halves) > 1 else ():
        along = across = 0.0
        for fitted, judge in (halves, halves[::-1]):
            change = _change(w, fitted, ridge)
            along += float((change * _missing(w, judge)).sum())
            across += float(((change @ judge.second) * change).sum())
        share = min(max(along / across, 0.0), 1.0) if across > 0 else 0.0
        best = max(best, (share * (2 * along - share * across), share, ridge))
    gain, share, ridge = best
    if gain <= 0:
        return Objective.toward(w, _error(w, w, total), shape, damping)
    target = w + share * _change(w, total, ridge)
    return Objective.toward(target, _error(target, w, total), shape, damping)


def _missing(weight: Matrix, gram: Gram) -> Matrix:
    """Sums of the inputs times what the outputs of `weight` lack."""
    return np.asarray(weight @ (gram.cross.transpose(0, 2, 1) - gram.second))


def _change(weight: Matrix, gram: Gram, ridge: float) -> Matrix:
    """What is added to `weight` by the least squares with a ridge."""
    second = gram.second / gram.count
    size = np.trace(second, axis1=1, axis2=2)[:, None] / gram.columns
    diagonal = np.arange(gram.columns)
    second[:, diagonal, diagonal] += ridge * np.where(size > 0, size, 1.0)
    missing = _missing(weight, gram) / gram.count
    return np.asarray(np.linalg.solve(second, missing.transpose(0, 2, 1)).transpose(0, 2, 1))


def _error(value: Matrix, weight: Matrix, gram: Gram) -> Matrix:
    """The mean squared difference of the outputs of `value` on x and of `weight` on r, (groups, outputs)."""
    own = ((value @ gram.second) * value).sum(axis=-1)
    both = ((weight @ gram.cross.transpose(0, 2, 1)) * value).sum(axis=-1)
    wanted = ((weight @ gram.reference) * weight).sum(axis=-1)
    return np.asarray(np.maximum(own - 2 * both + wanted, 0.0) / gram.count)
