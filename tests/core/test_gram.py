"""Gram matrices: sums against NumPy, merging, centring, and what does not add up."""

from __future__ import annotations

import numpy as np
import pytest

from isobit.errors import DataError
from isobit.graph import Tensor
from isobit.statistics import Gram, Patches, Rows, Statistics

DEPTHWISE = Patches("Conv", (4, 1, 3, 3), 4, (1, 1), (1, 1), (1, 1, 1, 1), (0, 0))


def rows_of(data, patches=DEPTHWISE, limit=10**6):
    rows = Rows(patches, limit)
    rows.update(data.astype(np.float32))
    return rows


def pair(seed=0, count=6):
    rng = np.random.default_rng(seed)
    data = rng.standard_normal((count, 4, 6, 6)) + 0.5
    return rows_of(data), rows_of(np.round(data * 4) / 4)


def test_sums_of_two_models():
    """All sums, per group, against einsum in float64."""
    reference, rows = pair()
    gram = Gram.of(rows, reference)
    x, r = rows.values.astype(np.float64), reference.values.astype(np.float64)
    assert (gram.count, gram.groups, gram.columns) == (6 * 36, 4, 9)
    for products, a, b in ((gram.second, x, x), (gram.cross, x, r), (gram.reference, r, r)):
        np.testing.assert_allclose(products, np.einsum("ngi,ngj->gij", a, b), rtol=1e-12)
    np.testing.assert_allclose(gram.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(gram.reference_mean, r.mean(0), rtol=1e-12)


def test_output_error_needs_no_data():
    """The squared difference of two layers' outputs, from the sums alone."""
    reference, rows = pair()
    gram = Gram.of(rows, reference)
    rng = np.random.default_rng(1)
    w, v = rng.standard_normal((2, 4, 3, 9))
    errors = np.einsum("goc,ngc->ngo", v, rows.values) - np.einsum("goc,ngc->ngo", w, reference.values)
    error_by_grams = (
        np.einsum("goi,gij,goj->", v, gram.second, v)
        - 2 * np.einsum("goi,gij,goj->", v, gram.cross, w)
        + np.einsum("goi,gij,goj->", w, gram.reference, w)
    )
    np.testing.assert_allclose(error_by_grams, (errors**2).sum(), rtol=1e-10)


def test_centred_sums():
    reference, rows = pair()
    centred = Gram.of(rows, reference).centered()
    x, r = (part.values - part.values.astype(np.float64).mean(0) for part in (rows, reference))
    np.testing.assert_allclose(centred.second, np.einsum("ngi,ngj->gij", x, x), atol=1e-9)
    np.testing.assert_allclose(centred.cross, np.einsum("ngi,ngj->gij", x, r), atol=1e-9)
    np.testing.assert_allclose(centred.reference, np.einsum("ngi,ngj->gij", r, r), atol=1e-9)


@pytest.mark.parametrize("paired", [True, False])
def test_parts_add_up_and_are_saved(tmp_path, paired):
    grams = []
    for seed in (0, 1):
        reference, rows = pair(seed)
        grams.append(Gram.of(rows, reference if paired else None))
    merged = Gram.from_arrays(grams[0].arrays())
    merged.merge(grams[1])
    assert merged.count == grams[0].count + grams[1].count
    for name in ("total", "second", "cross", "reference", "reference_total"):
        np.testing.assert_array_equal(getattr(merged, name), getattr(grams[0], name) + getattr(grams[1], name))
    Statistics({Tensor("x"): merged}).save(tmp_path / "gram.npz")
    loaded = Statistics.load(tmp_path / "gram.npz")[Tensor("x")]
    assert isinstance(loaded, Gram)
    assert loaded.has_reference is paired
    np.testing.assert_array_equal(loaded.cross, merged.cross)


def test_what_does_not_add_up():
    reference, rows = pair()
    with pytest.raises(DataError, match="different positions"):
        Gram.of(rows, pair(count=5)[0])
    with pytest.raises(DataError, match="do not add up"):
        Gram.of(rows).merge(Gram.of(rows, reference))
    with pytest.raises(DataError, match="no rows"):
        Gram.of(Rows(DEPTHWISE))
    with pytest.raises(DataError, match="NaN"):
        Gram.of(rows_of(np.full((1, 4, 6, 6), np.nan)))
