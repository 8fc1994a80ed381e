"""`GridWarning` for weights that are given once for each of their readers, by grids of their own."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import pytest

from isobit.encodings import QuantSpec
from isobit.encodings.ranges import encode_weight
from isobit.errors import GridWarning
from isobit.training.left_grids import QuantizedWeight, left_grids_noticed

FORMATS = ["int8 per-tensor", "int8 per-channel"]


@pytest.mark.parametrize("formats", [FORMATS, FORMATS[::-1]])
def test_two_grids_of_one_weight(formats: list[str]) -> None:
    """Unchanged weights are no news, in either order; changed ones are."""
    table = np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
    table[0] *= 8
    grids = [encode_weight(table, QuantSpec.parse(text), channel_axis=0) for text in formats]

    def weights() -> Iterator[QuantizedWeight]:
        return ((name, grid, table) for name in ("table", "other") for grid in grids)

    with warnings.catch_warnings(), left_grids_noticed(weights):
        warnings.simplefilter("error")
        table += 0
    with pytest.warns(GridWarning, match=r"4 of 4 quantized weights .* 'table'"), left_grids_noticed(weights):
        table *= 10
