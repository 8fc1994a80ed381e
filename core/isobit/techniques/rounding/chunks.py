"""Layers with very many weights are solved some outputs at a time, so that what is worked with stays small."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.encodings.encoding import Encoding
from isobit.encodings.quant_spec import PerTensor
from isobit.techniques.rounding.problem import Problem, Solution

#: Weights that are solved at once, about: solvers hold some twenty numbers for each.
WEIGHTS = 1 << 19


def solve_in_chunks(problem: Problem, solve: Callable[[Problem], Solution]) -> Solution:
    """The solution of a problem whose outputs have nothing in common; all at once where they share a scale."""
    patches, placement = problem.layer.patches, problem.layer.placement
    at_once = max(1, WEIGHTS // patches.columns)
    outputs = patches.weight_shape[0]
    one_scale = placement.spec.granularity is None or isinstance(placement.spec.granularity, PerTensor)
    stacked = patches.groups > 1 or placement.channel_axis != 0 or problem.activated is not None
    if outputs <= at_once or one_scale or stacked:
        return solve(problem)
    ends = np.linspace(0, outputs, -(-outputs // at_once) + 1).astype(int)  # parts of about the same size
    parts = [solve(problem.outputs(slice(*part))) for part in pairwise(ends)]
    integers = np.concatenate([integers for integers, _ in parts], axis=1)
    return integers, _joined([encoding for _, encoding in parts])


def _joined(parts: Sequence[Encoding]) -> Encoding:
    """The encoding of a weight from those of its outputs, which are on axis 0."""
    first, *rest = parts
    joined: list[NDArray[Any] | None] = []
    for name in ("scale", "zero_point", "multiplier", "channel_scale"):
        own = getattr(first, name)
        joined.append(None if own is None else np.concatenate([own, *(getattr(part, name) for part in rest)]))
    scale, zero_point, multiplier, channel_scale = joined
    assert scale is not None  # every encoding has these two
    assert zero_point is not None
    return Encoding(first.spec, scale, zero_point, first.axis, multiplier, channel_scale)
