"""The error of layers with very many weights a channel, and targets that few rows do not overfit."""

from __future__ import annotations

import numpy as np
import pytest

from isobit.encodings import QuantSpec
from isobit.graph import Weight
from isobit.placement import Placement
from isobit.statistics import Gram, Patches, Rows
from isobit.techniques import GPTQ, AdaRound, SequentialMse
from isobit.techniques.rounding import chunks, output_error, row_objective
from isobit.techniques.rounding.chunks import solve_in_chunks
from isobit.techniques.rounding.damping import DAMPINGS
from isobit.techniques.rounding.layers import Layer
from isobit.techniques.rounding.objective import Objective
from isobit.techniques.rounding.output_error import SeenInput
from isobit.techniques.rounding.problem import Problem

SPECS = ["int4 per-tensor", "int4 per-channel", "uint4 per-channel", "int4 block=8", "int4 lpbq=8"]


def layer_of(patches: Patches, spec: str = "int4 per-channel") -> Layer:
    placement = Placement(Weight("w"), QuantSpec.parse(spec), "weight", channel_axis=0, block_axis=1)
    return Layer("w", placement, {"y": patches})


def rows_of(patches: Patches, data: np.ndarray) -> Rows:
    rows = Rows(patches)
    rows.update(data.astype(np.float32))
    return rows


def case(patches: Patches, seed: int = 0) -> tuple[np.ndarray, Rows]:
    """A weight and correlated inputs, as a matrix product or a grouped convolution reads them."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(patches.weight_shape).astype(np.float32)
    channels = patches.channels
    mix = np.eye(channels) + 0.5 * rng.standard_normal((channels, channels)) / np.sqrt(channels) * 2
    data = rng.standard_normal((200, channels)) @ mix + 0.5
    if patches.kernel:
        data = rng.standard_normal((20, channels, 6, 6)) + np.repeat(data[:20, :, None, None], 6, axis=2)
    return weight, rows_of(patches, data)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of more than 10 weights a channel count as large, and are solved 24 at a time."""
    monkeypatch.setattr(output_error, "LARGE", 10)
    monkeypatch.setattr(row_objective, "PART", 24)


PATCHES = [
    Patches("Linear", (8, 96)),
    Patches("Conv", (8, 16, 3, 3), 2, (1, 1), (1, 1), (1, 1, 1, 1), (0, 0)),
]


@pytest.mark.parametrize("patches", PATCHES)
@pytest.mark.usefixtures("parts")
def test_rows_and_second_moments_say_the_same(patches: Patches) -> None:
    """All figures of the error from the rows are those of the Gram."""
    weight, rows = case(patches)
    matrix, other = patches.matrix(weight), patches.matrix(np.round(weight * 2) / 2)
    large = output_error.output_error(layer_of(patches), matrix, SeenInput([(rows, None)], centered=True), 0.01)
    assert isinstance(large, row_objective.RowObjective)
    exact = Objective.of(matrix, Gram.of(rows).centered(), 0.01)
    np.testing.assert_allclose(large.error(other), exact.error(other), rtol=1e-5)
    np.testing.assert_allclose(large.curvature(other), exact.curvature(other), rtol=1e-5)
    np.testing.assert_allclose(large.constant, exact.constant, rtol=1e-5)
    np.testing.assert_allclose(large.linear, exact.linear, atol=1e-5 * np.abs(exact.linear).max())


@pytest.mark.usefixtures("parts")
def test_parts_state_the_error_while_the_others_are_held() -> None:
    """What a part says a change brings is what the whole says, with earlier parts as they were left."""
    weight, rows = case(PATCHES[0])
    matrix = PATCHES[0].matrix(weight)
    whole = output_error.output_error(layer_of(PATCHES[0]), matrix, SeenInput([(rows, None)], centered=False), 0.01)
    values = np.round(matrix.astype(np.float64))
    for part, within in whole.parts(values):
        before, error = values[..., part].copy(), whole.error(values)
        values[..., part] = np.round(matrix[..., part] * 4) / 4
        gained = within.error(values[..., part]) - within.error(before)
        np.testing.assert_allclose(gained, whole.error(values) - error, rtol=1e-3, atol=1e-5 * error.max())


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.usefixtures("parts")
def test_large_layers_are_solved_nearly_as_well(spec: str) -> None:
    """Part after part: at most half more error than at once, for each technique, and in their order."""
    patches = PATCHES[0]
    weight, rows = case(patches)
    matrix, layer = patches.matrix(weight), layer_of(patches, spec)
    exact = Objective.of(matrix, Gram.of(rows).centered(), 0.01)
    reached = []
    for technique in (SequentialMse(), GPTQ(), AdaRound()):
        shares = []
        for error in (exact, output_error.output_error(layer, matrix, SeenInput([(rows, None)], centered=True), 0.01)):
            integers, encoding = technique._solve(Problem(layer, weight, error))
            rounded = patches.matrix(encoding.dequantize(integers.reshape(weight.shape)))
            shares.append(Problem(layer, weight, exact).share(rounded))
        assert shares[1] < 1.5 * shares[0]
        reached.append(shares[1])
    assert reached[0] > reached[1] >= reached[2]


@pytest.mark.parametrize("spec", SPECS)
def test_chunks_of_outputs_are_solved_alike(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three outputs at a time, and all at once where they share a scale: the same integers and scales."""
    patches = PATCHES[0]
    weight, rows = case(patches)
    layer = layer_of(patches, spec)
    problem = Problem(
        layer,
        weight,
        output_error.output_error(layer, patches.matrix(weight), SeenInput([(rows, None)], centered=True)),
    )
    expected_integers, expected = solve_in_chunks(problem, AdaRound()._solve)
    monkeypatch.setattr(chunks, "WEIGHTS", 3 * 96)
    integers, encoding = solve_in_chunks(problem, AdaRound()._solve)
    np.testing.assert_array_equal(integers, expected_integers)
    assert encoding == expected


def test_damping_is_found_where_data_is_little() -> None:
    """On new data weights rounded with the damping that halves choose err less than with the least one."""
    rng = np.random.default_rng(3)
    patches = Patches("Linear", (24, 64))
    weight = rng.standard_normal(patches.weight_shape).astype(np.float32)
    mix = np.eye(64) + 0.2 * rng.standard_normal((64, 64))
    layer = layer_of(patches)
    new, errors = rng.standard_normal((4000, 64)) @ mix, {}
    for count in (96, 8000):
        rows = rows_of(patches, rng.standard_normal((count, 64)) @ mix)
        for damping in (None, DAMPINGS[0]):
            found = output_error.output_error(
                layer, patches.matrix(weight), SeenInput([(rows, None)], centered=False), damping
            )
            integers, encoding = AdaRound()._solve(Problem(layer, weight, found))
            rounded = encoding.dequantize(integers.reshape(weight.shape))
            errors[count, damping] = np.square(new @ (rounded - weight).T).mean()
            if damping is None:
                assert (found.damping > DAMPINGS[0]) == (count == 96)
    assert errors[96, None] < 0.97 * errors[96, DAMPINGS[0]]
    assert errors[8000, None] <= errors[8000, DAMPINGS[0]]


def test_what_few_rows_cannot_teach_is_not_learnt() -> None:
    """Inputs with noise that follows nothing: least squares would shrink and bend the weight, this leaves it alone."""
    rng = np.random.default_rng(0)
    patches = Patches("Linear", (6, 40))
    weight = rng.standard_normal((6, 40)).astype(np.float32)
    r = rng.standard_normal((60, 40))
    seen = rows_of(patches, r + 0.3 * rng.standard_normal(r.shape)), rows_of(patches, r)
    objective = output_error.output_error(
        layer_of(patches), patches.matrix(weight), SeenInput([seen], centered=False), 0.01
    )
    fitted = Objective.of(patches.matrix(weight), Gram.of(*seen), 0.01).target()
    new = rng.standard_normal((4000, 40))
    x = new + 0.3 * rng.standard_normal(new.shape)

    def error(value: np.ndarray) -> float:
        return float(np.square(x @ value[0].T - new @ weight.T.astype(np.float64)).mean())

    assert error(objective.target()) < error(patches.matrix(weight))  # the noise asks for somewhat smaller weights
    assert error(objective.target()) < 0.8 * error(fitted)


def test_what_rows_do_teach_is_made_up_for() -> None:
    """A gain that an earlier layer lost is found again: by many rows in full, also where samples are few."""
    rng = np.random.default_rng(1)
    patches = Patches("Linear", (6, 24))
    weight = rng.standard_normal((6, 24)).astype(np.float32)
    r = rng.standard_normal((400, 24))
    x = r * rng.uniform(0.8, 1.2, 24)
    seen = rows_of(patches, x), rows_of(patches, r)
    objective = output_error.output_error(
        layer_of(patches), patches.matrix(weight), SeenInput([seen], centered=False), 0.01
    )
    left = np.square(x @ objective.target()[0].T - r @ weight.T).mean()
    assert left < 0.01 * np.square(x @ weight.T - r @ weight.T).mean()
    np.testing.assert_allclose(objective.error(objective.target()).mean(), left, rtol=0.05)


def test_one_sample_teaches_nothing() -> None:
    rng = np.random.default_rng(2)
    patches = Patches("Conv", (4, 2, 3, 3), 1, (1, 1), (1, 1), (1, 1, 1, 1), (0, 0))
    weight = rng.standard_normal(patches.weight_shape).astype(np.float32)
    r = rng.standard_normal((1, 2, 8, 8))
    seen = rows_of(patches, 0.5 * r), rows_of(patches, r)
    matrix = patches.matrix(weight)
    objective = output_error.output_error(layer_of(patches), matrix, SeenInput([seen], centered=True), 0.01)
    np.testing.assert_array_equal(objective.target(), matrix)
